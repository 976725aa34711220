"""What every op promises, on every backend and dtype it has."""

import dataclasses
import itertools
import subprocess
import sys

import pytest
import torch

import qkernels as qk
from qkernels import backends
from qkernels.testing import CASES, check, usable
from qkernels.testing.compare import assert_same_bits, leaves, value_and_grads

from .isas import ALL, SAME_BITS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def grid(references=False):
    for case in CASES:
        for backend in case.backends():
            if backend == "reference" and not references:
                continue
            for dtype in case.dtypes:
                if usable(case, backend, dtype, DEVICE):
                    yield pytest.param(case, backend, dtype, id=f"{case}-{backend}-{str(dtype)[6:]}")


every = pytest.mark.parametrize("case, backend, dtype", list(grid()))
every_and_reference = pytest.mark.parametrize("case, backend, dtype", list(grid(references=True)))


@every
def test_matches_reference(case, backend, dtype):
    for tensors, kwargs in case.samples_on(backend, DEVICE, dtype):
        check(case, tensors, kwargs, backend)


@pytest.mark.parametrize("name", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_instruction_sets_agree_to_the_bit(case, name, isa):
    """Also the parameters' sums: an AVX2 and an AVX-512 machine train the same network."""
    best = isa("")
    if name not in ALL:
        pytest.skip(f"this machine has no {name}")
    for dtype in case.dtypes:
        for tensors, kwargs in case.samples("cpu", dtype):
            isa(best)
            want = value_and_grads(case.fn, tensors, kwargs | {"backend": "cpu"})
            isa(name)
            got = value_and_grads(case.fn, tensors, kwargs | {"backend": "cpu"})
            what = f"{case} {name} {dtype} {list(tensors[0].shape)} {kwargs}"
            assert_same_bits(got[0], want[0], what)
            assert_same_bits(got[1][0], want[1][0], f"{what} dx")
            for g, w in zip(got[1][1:], want[1][1:], strict=True):
                assert_same_bits(g, w, f"{what} parameter")


def extreme_calls(case):
    """(tensors, kwargs): every parameter at every scale that float32 has, x beside them or not."""
    scales = (1e-44, 1e-40, 1.2e-38, 1e-30, 1.0, 1e30, 1e38)
    ordinary = case.parameters(1)
    scaled = [i for i in range(len(ordinary)) if i + 1 not in case.shared]
    each = scales if len(scaled) < 3 else scales[::2]
    options = [case.plain] + [case.plain | {"estimator": "full", "truncate": t} for t in (False, True)] * (
        case.name == "cpq"
    )
    for factors in itertools.product(each, repeat=len(scaled)):
        params = list(ordinary)
        for i, factor in zip(scaled, factors, strict=True):
            params[i] = ordinary[i] * factor
        x = torch.randn(5, generator=torch.Generator().manual_seed(0))
        for kwargs in options:
            yield (x * factors[0], *params), kwargs
            yield (x, *params), kwargs


@pytest.mark.parametrize("case", CASES, ids=str)
def test_extreme_parameters_are_the_same_on_each_instruction_set(case, isa):
    """To the bit; and what fills up a vector adds nothing: 5 elements are NaN where 160 of the same are."""
    for tensors, kwargs in extreme_calls(case):
        found = {}
        for copies in (1, 3, 32):
            for name in SAME_BITS:
                isa(name)
                call = (tensors[0].repeat(copies), *tensors[1:]), kwargs | {"backend": "cpu"}
                y, grads, _ = value_and_grads(case.fn, *call, g=torch.linspace(-1, 1, 5).repeat(copies))
                what = f"{case} {name} {copies} {[t.flatten()[0].item() for t in tensors[1:]]} {kwargs}"
                want_y, want = found.setdefault(copies, (y, grads))
                assert_same_bits(y, want_y, what)
                for i, (got, one) in enumerate(zip(grads, want, strict=True)):
                    assert_same_bits(got, one, f"{what} gradient {i}")
        for few, many in zip(found[1][1][1:], found[32][1][1:], strict=True):
            assert torch.equal(few.isnan(), many.isnan()), f"{case} {kwargs} {tensors}"


@every
def test_is_local_about_nan_and_inf(case, backend, dtype):
    """A NaN stays where it was: y NaN, dx 0, that block's parameter gradient NaN. Inf saturates, without gradient."""
    for tensors, kwargs in case.samples_on(backend, DEVICE, dtype):
        x, *params = tensors
        if x.numel() != 384 or params[0].shape[0] != 12:
            continue
        x = x.clone().reshape(12, 32)
        x[3, 5], x[4, 6], x[5, 7], x[6, 8] = torch.nan, torch.inf, -torch.inf, -0.0
        y, (dx, *dps), g = value_and_grads(case.fn, (x, *params), kwargs | {"backend": backend})
        finite = x.nan_to_num(1.0, posinf=3e4, neginf=-3e4)
        y_finite, (dx_finite, *dps_finite), _ = value_and_grads(
            case.fn, (finite, *params), kwargs | {"backend": backend}
        )
        assert y.isnan().nonzero().tolist() == [[3, 5]] and dx[3, 5] == 0
        keep = ~y.isnan()
        assert_same_bits(y[keep], y_finite[keep], "Inf saturates")
        assert not (y == 0).logical_and(y.signbit()).any(), "-0 must come out as +0"
        if kwargs.get("clip_grad", True):
            assert dx[4, 6] == 0 and dx[5, 7] == 0
        assert_same_bits(dx[keep], dx_finite[keep], "dx")
        for i, (dp, dp_finite) in enumerate(zip(dps, dps_finite, strict=True), start=1):
            if case.blocks(tensors, i) == 12:
                assert dp.reshape(12, -1).isnan().all(1).nonzero().tolist() == [[3]]
                rest = ~dp.isnan()
                assert rest.sum() == dp.numel() * 11 / 12
                assert_same_bits(dp[rest], dp_finite[rest], "parameter gradients")
            else:
                assert dp.isnan().all()


@every_and_reference
def test_a_collapsed_parameter_gives_nan(case, backend, dtype):
    x = torch.randn(4, 8).to(DEVICE, dtype)
    for i in case.positive:
        for bad in (0.0, -1.0, torch.nan):
            params = [p.to(DEVICE).clone() for p in case.parameters(4)]
            params[i - 1][1] = bad
            y = case.fn(x, *params, **case.plain, backend=backend)
            assert y.isnan().all(1).tolist() == [False, True, False, False], f"parameter {i}: {bad}"
            assert not y[[0, 2, 3]].isnan().any()


@every
def test_opcheck(case, backend, dtype):
    """Schema, fake tensors and dispatch of the raw ops, forward and backward."""
    if case.kernels:
        pytest.skip(f"{case} has no op of its own: it runs on {case.kernels}'s")
    fwd = getattr(torch.ops.qkernels, f"{case.name}_fwd").default
    bwd = getattr(torch.ops.qkernels, f"{case.name}_bwd").default
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    picked = [s for s in case.samples_on(backend, DEVICE, dtype) if "grad_scale" not in s[1]]
    for tensors, kwargs in picked[:3] + picked[-2:]:
        x, *params = tensors
        x = x.contiguous()
        torch.library.opcheck(fwd, (x, *params, *case.fwd_args(**kwargs), backend), test_utils=tests)
        torch.library.opcheck(bwd, (x, x, *params, *case.bwd_args(**kwargs), backend), test_utils=tests)


def test_every_op_says_that_it_is_for_compilers():
    """For who lets no other into a graph."""
    assert len(backends._OPS) > 10
    for op in backends._OPS:
        assert torch.Tag.pt2_compliant_tag in getattr(torch.ops.qkernels, op).default.tags, op
    torch._dynamo.reset()
    x, step = torch.randn(64), torch.tensor([0.1], requires_grad=True)
    with torch._dynamo.config.patch(only_allow_pt2_compliant_ops=True):
        y = torch.compile(qk.lsq, fullgraph=True)(x, step, bits=4)
        y.sum().backward()
    assert_same_bits(y, qk.lsq(x, step, bits=4), "compiled")
    assert step.grad is not None


@every
def test_compiles_whole(case, backend, dtype):
    torch._dynamo.reset()
    compiled = torch.compile(case.fn, fullgraph=True, dynamic=True, backend="aot_eager")
    picked = [s for s in case.samples_on(backend, DEVICE, dtype) if s[0][0].dim() == 2 and s[0][0].is_contiguous()][:2]
    picked += [s for s in case.samples_on(backend, DEVICE, dtype) if s[0][0].dim() == 4][:1]
    assert len(picked) == 3
    for tensors, kwargs in picked:
        kwargs = kwargs | {"backend": backend}
        eager, compiled_result = value_and_grads(case.fn, tensors, kwargs), value_and_grads(compiled, tensors, kwargs)
        assert_same_bits(compiled_result[0], eager[0], f"{case} compiled")
        assert_same_bits(compiled_result[1][0], eager[1][0], f"{case} compiled dx")
        for got, want in zip(compiled_result[1][1:], eager[1][1:], strict=True):
            if tensors[0].is_contiguous():
                assert_same_bits(got, want, f"{case} compiled parameter")
            else:  # eager adds a channels_last x in the order of its memory, compiled in row-major order
                torch.testing.assert_close(got, want)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiles_with_inductor(case):
    torch._dynamo.reset()
    tensors = (torch.randn(16, 33, device=DEVICE), *(p.to(DEVICE) for p in case.parameters(16)))

    def layer(x, *params):
        return torch.nn.functional.silu(case.fn(x * 2, *params, **case.plain))

    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(value_and_grads(compiled, tensors, {}), value_and_grads(layer, tensors, {}))


@every
def test_torch_func_grad(case, backend, dtype):
    tensors, kwargs = next(s for s in case.samples_on(backend, DEVICE, dtype) if s[0][0].numel() == 1024)

    def loss(*tensors):
        return (case.fn(*tensors, **kwargs, backend=backend).float() ** 2).sum()

    got = torch.func.grad(loss, argnums=tuple(range(len(tensors))))(*tensors)
    own = leaves(tensors)
    want = torch.autograd.grad(loss(*own), own)
    for g, w in zip(got, want, strict=True):
        assert_same_bits(g, w, f"{case}")


@every_and_reference
def test_torch_func_vmap(case, backend, dtype):
    """Gradients through vmap, and vmap of gradients: an ensemble trains as its members do."""
    x, params = torch.randn(3, 8, 16).to(DEVICE, dtype), tuple(p.to(DEVICE) for p in case.parameters(1))

    def loss(x, *params):
        return (case.fn(x, *params, **case.plain, backend=backend).float() ** 2).sum()

    grad = torch.func.grad(loss, argnums=tuple(range(1 + len(params))))
    shared = (0, *[None] * len(params))
    want = [grad(row, *params) for row in x]
    dx, *dps = torch.func.vmap(grad, in_dims=shared)(x, *params)
    inside = torch.func.grad(lambda x: torch.func.vmap(loss, in_dims=shared)(x, *params).sum())(x)
    for i, (wx, *wps) in enumerate(want):
        assert_same_bits(dx[i], wx, f"{case} dx")
        assert_same_bits(inside[i], wx, f"{case} dx through vmap")
        for dp, wp in zip(dps, wps, strict=True):
            torch.testing.assert_close(dp[i], wp)
    assert dx.abs().sum() > 0


@every_and_reference
def test_torch_func_vmap_over_parameters(case, backend, dtype):
    """Each member has parameters of its own; a batch in another dimension, of batches, or of none."""
    x = torch.randn(8, 3, 16).to(DEVICE, dtype)
    params = [torch.stack([p * f for f in (0.8, 0.9, 1.0)]).to(DEVICE) for p in case.parameters(1)]

    def call(x, *params):
        return case.fn(x, *params, **case.plain, backend=backend)

    in_dims = (1, *[0] * len(params))
    members = torch.func.vmap(call, in_dims=in_dims)
    want = torch.stack([call(x[:, i], *(p[i] for p in params)) for i in range(3)])
    assert_same_bits(members(x, *params), want, f"{case}")
    both = torch.func.vmap(members, in_dims=(0, *[None] * len(params)))(torch.stack([x, -x]), *params)
    assert_same_bits(both[0], want, f"{case} twice")
    if backend != "reference":
        if not case.kernels:
            op = getattr(torch.ops.qkernels, f"{case.name}_fwd").default
            raw = torch.func.vmap(lambda x, *p: op(x, *p, *case.fwd_args(**case.plain), backend), in_dims=in_dims)
            assert_same_bits(raw(x, *params), want, f"{case}: the op itself")
        none = members(x[:, :0], *(p[:0] for p in params))
        assert none.shape == (0, 8, 16) and none.dtype == dtype


def test_torch_func_vmap_over_what_is_no_quantizer():
    x, step = torch.randn(3, 5, 64), torch.tensor([0.3])
    w = qk.LutWeight.pack(torch.randint(0, 16, (24, 64)), torch.randn(16), torch.rand(24) + 0.1, bits=4)
    for call in (
        lambda x: qk.lut_linear(x, w),
        lambda x: torch.stack(qk.channel_error(x, step, bits=4, dim=1)),
        lambda x: qk.hard_concrete(x, seed=3),
    ):
        assert_same_bits(torch.func.vmap(call)(x), torch.stack([call(row) for row in x]), "vmap")
    seeds = torch.tensor([3, 4])
    got = torch.func.vmap(lambda seed: qk.hard_concrete(x, seed=seed))(seeds)
    assert_same_bits(got, torch.stack([qk.hard_concrete(x, seed=seed) for seed in (3, 4)]), "seeds")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_mode_is_refused_not_zero(case):
    x, params = torch.randn(4, device=DEVICE), [p.to(DEVICE) for p in case.parameters(1)]
    backend = next(b for b in case.backends() if usable(case, b, torch.float32, DEVICE))
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        torch.func.jvp(lambda x: case.fn(x, *params, **case.plain, backend=backend), (x,), (torch.ones_like(x),))


@pytest.mark.skipif(DEVICE != "cpu", reason="the layout handling is the same on every device")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_channels_last_compiles_with_symbolic_sizes(case):
    torch._dynamo.reset()
    w = torch.ones(4, 8, 3, 3).to(memory_format=torch.channels_last)

    def layer(x, *params):
        return torch.nn.functional.conv2d(case.fn(x, *params, **case.plain), w)

    g = torch.Generator().manual_seed(0)
    x = torch.randn(4, 8, 9, 9, generator=g).to(memory_format=torch.channels_last)
    tensors = (x, *case.parameters(1))
    compiled = torch.compile(layer, dynamic=True, fullgraph=True)
    (y, grads, g), (y_want, want, _) = (value_and_grads(f, tensors, {}) for f in (compiled, layer))
    torch.testing.assert_close((y, grads[0]), (y_want, want[0]))
    size = torch.nn.functional.conv_transpose2d(g, w).abs().sum().item() * torch.finfo(torch.float32).eps
    for i in range(1, len(tensors)):  # eager adds in the order of memory, compiled in row-major order
        rounding = size * case.operands(tensors, case.plain)[i - len(tensors)]
        torch.testing.assert_close(grads[i], want[i], rtol=0, atol=rounding)


def test_raw_cpu_ops_refuse_what_would_read_elsewhere():
    ops, x, s, x64 = torch.ops.qkernels_cpu, torch.randn(10), torch.ones(1), torch.randn(64)
    for call, message in [
        (lambda: ops.lsq_fwd(x, torch.ones(0), -8, 7), "P must divide"),
        (lambda: ops.lsq_fwd(x, torch.ones(4), -8, 7), "P must divide"),
        (lambda: ops.lsq_fwd(torch.randn(4, 4).t(), s, -8, 7), "x must be contiguous"),
        (lambda: ops.lsq_bwd(torch.randn(4, 4).t(), torch.randn(4, 4), s, -8, 7), "g must be contiguous"),
        (lambda: ops.lsq_fwd(x.double(), s, -8, 7), "x must be float32, float16 or bfloat16, got a dtype of 8 bytes"),
        (lambda: ops.lsq_fwd(x, s.double(), -8, 7), "parameters must be float32"),
        (lambda: ops.lut_dequantize(torch.zeros(512).byte(), x, torch.ones(16), 5, 64, 16, 64), "bits must be 1, 2, 3"),
        (lambda: ops.lut_dequantize(torch.zeros(512).byte(), x, torch.ones(16), 4, 64, 16, 0), "n and k must be"),
        (lambda: ops.lut_dequantize(torch.zeros(512).byte(), x, torch.ones(16), 4, 48, 16, 64), "group_size must"),
        (lambda: ops.lut_dequantize(torch.zeros(1024).byte(), x, torch.ones(64), 4, 24, 16, 96), "group_size must"),
        (lambda: ops.lut_dequantize(torch.zeros(511).byte(), x, torch.ones(16), 4, 64, 16, 64), "codes must have 512"),
        (lambda: ops.lut_dequantize(torch.zeros(512).byte(), x, torch.ones(15), 4, 64, 16, 64), "scale must have 16"),
        (lambda: ops.lut_linear(x64[None], torch.zeros(512).byte(), x, torch.ones(16), s, 4, 64, 16, 64), "bias must"),
        (lambda: ops.lut_linear(x64, torch.zeros(512).byte(), x, torch.ones(16), None, 4, 64, 16, 64), "x must be"),
    ]:  # fmt: skip
        with pytest.raises(RuntimeError, match=message):
            call()


FREED = {  # what is called with t, and t
    "a quantizer's x": (lambda t: qk.lsq(t, STEP, bits=4, backend="cpu"), lambda: torch.randn(4, 64)),
    "a step": (lambda t: qk.lsq(X, t, bits=4, backend="cpu"), lambda: torch.tensor([0.1])),
    "x of a packed matmul": (lambda t: qk.lut_linear(t, packed()), lambda: torch.randn(4, 64)),
    "a view as x": (lambda t: qk.lut_linear(t, packed()), lambda: torch.randn(4, 64)[1:]),
    "a bias": (lambda t: qk.lut_linear(X, packed(), t), lambda: torch.randn(24)),
    "codes": (lambda t: qk.lut_linear(X, dataclasses.replace(packed(), codes=t)), lambda: packed().codes),
    "what is to be packed": (lambda t: torch.ops.qkernels_cpu.lut_pack(t, 4), lambda: torch.ones(24, 64).byte()),
    "channels": (lambda t: torch.ops.qkernels_cpu.channel_error(t, STEP, -8, 7, 0), lambda: torch.randn(4, 64)),
    "a gradient's x": (lambda t: torch.ops.qkernels_cpu.lsq_bwd(X, t, STEP, -8, 7), lambda: torch.randn(4, 64)),
    "a gradient": (lambda t: torch.ops.qkernels_cpu.lsq_bwd(t, X, STEP, -8, 7), lambda: torch.randn(4, 64)),
}
X, STEP = torch.ones(4, 64), torch.tensor([0.1])


def packed() -> qk.LutWeight:
    return qk.LutWeight.pack(torch.zeros(24, 64).byte(), torch.arange(16.0), torch.ones(24), bits=4, group_size=64)


@pytest.mark.parametrize("name", FREED)
def test_freed_memory_is_an_error(name):
    """Not a crash: sharding frees a parameter's storage between its uses."""
    call, make = FREED[name]
    t = make()
    call(t)
    t.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=r"must be in memory, got \d+ values whose storage was freed"):
        call(t)


@every
def test_autocast_changes_nothing(case, backend, dtype):
    tensors, kwargs = next(s for s in case.samples_on(backend, DEVICE, dtype) if s[0][0].numel() == 1024)
    want = value_and_grads(case.fn, tensors, kwargs | {"backend": backend})
    with torch.autocast(DEVICE, torch.bfloat16):
        got = value_and_grads(case.fn, tensors, kwargs | {"backend": backend})
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@every_and_reference
def test_keeps_the_layout_of_channels_last(case, backend, dtype):
    x = torch.randn(6, 5, 4, 3).to(DEVICE, dtype).to(memory_format=torch.channels_last)
    for P in (1, 6):
        y = case.fn(x, *(p.to(DEVICE) for p in case.parameters(P)), **case.plain, backend=backend)
        assert y.is_contiguous(memory_format=torch.channels_last) and y.shape == x.shape


def saved_tensors(call):
    """The tensors that a call keeps for its backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        call()
    return saved


@pytest.mark.parametrize("case, dtype", [pytest.param(c, d, id=f"{c}-{str(d)[6:]}") for c in CASES for d in c.dtypes])
def test_saves_x_and_the_parameter_only(case, dtype):
    """0 bytes per element beyond x, also where x is a slice or channels_last: what is saved shares x's storage.

    One Function saves for every backend with kernels.
    """
    backend = next(b for b in case.backends() if usable(case, b, torch.float32, DEVICE))
    for tensors, kwargs in case.samples(DEVICE, dtype):
        own = leaves(tensors)
        saved = saved_tensors(lambda own=own, kwargs=kwargs: case.fn(*own, **kwargs, backend=backend))
        x_storage = own[0].untyped_storage().data_ptr()
        most = max(p.untyped_storage().nbytes() for p in own[1:])
        stored = [(t, t.untyped_storage()) for t in saved]  # an expanded parameter is as large as what it expands
        extra = [t for t, storage in stored if storage.nbytes() > most and storage.data_ptr() != x_storage]
        assert not extra, f"{case} {list(own[0].shape)} saves {[list(t.shape) for t in extra]}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_the_thread_count(case):
    g = torch.Generator().manual_seed(0)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            for shape, P in [((300_001,), 1), ((37, 9001), 37)]:
                g.manual_seed(0)
                x = torch.randn(shape, generator=g)
                call = case.plain | {"backend": "cpu"}
                results.append((threads, shape, value_and_grads(case.fn, (x, *case.parameters(P)), call)))
    finally:
        torch.set_num_threads(before)
    for threads, shape, (y, grads, _) in results:
        _, _, (y1, grads1, _) = next(r for r in results if r[1] == shape)
        what = f"{case} with {threads} threads"
        assert_same_bits(y, y1, what)
        for got, want in zip(grads, grads1, strict=True):
            assert_same_bits(got, want, what)


@every_and_reference
def test_hardened_codes_are_what_the_forward_used(case, backend, dtype):
    """levels[codes] * scale equals the forward to the bit: what is packed is what was trained."""
    if case.harden is None:
        pytest.skip(f"{case} has no hard grid")
    tried = 0
    for tensors, kwargs in case.samples_on(backend, DEVICE, dtype):
        if not tensors[0].numel():
            continue
        hardened = case.harden(*tensors, **kwargs)
        if hardened is None:
            continue
        y = case.fn(*tensors, **kwargs, backend=backend)
        assert hardened.codes.dtype == torch.uint8 and int(hardened.codes.max()) < hardened.levels.numel() <= 256
        assert_same_bits(hardened.value().to(dtype), y, f"{case} {kwargs}")
        tried += 1
    assert tried > 30


def errors():
    for case in CASES:
        for i, (tensors, kwargs, exception, message) in enumerate(case.errors()):
            yield pytest.param(case, tensors, kwargs, exception, message, id=f"{case}-{i}")


@pytest.mark.parametrize("case, tensors, kwargs, exception, message", list(errors()))
def test_refuses_with_reason(case, tensors, kwargs, exception, message):
    with pytest.raises(exception, match=message):
        case.fn(*tensors, **kwargs)


def test_explicit_backend_is_set_by_the_environment(monkeypatch):
    x, p = torch.randn(8), torch.ones(1)
    monkeypatch.setenv("QKERNELS_BACKEND", "abacus")
    with pytest.raises(NotImplementedError, match="QKERNELS_BACKEND='abacus' cannot run: no such backend"):
        CASES[0].fn(x, p, bits=4)  # lsq
    monkeypatch.setenv("QKERNELS_BACKEND", "reference")
    assert backends.resolve("lsq", x, None) == "reference"
    assert backends.resolve("lsq", x, "cpu") == "cpu", "an argument wins over the environment"


def test_instruction_set_is_set_by_the_environment():
    source = "import torch, qkernels; print(torch.ops.qkernels_cpu.isa(''))"

    def run(isa):
        return subprocess.run([sys.executable, "-c", source], env={"QKERNELS_ISA": isa}, capture_output=True, text=True)

    assert run("scalar").stdout.strip() == "scalar"
    bad = run("mmx")
    assert bad.returncode and "QKERNELS_ISA must be one of scalar" in bad.stderr and "got mmx" in bad.stderr
