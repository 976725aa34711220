"""Matmul and convolution with packed weights: the weight is exact, the sums are as good as plain PyTorch's."""

import dataclasses
import io
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

import qkernels as qk
from qkernels import backends
from qkernels.ops.lut_linear import op
from qkernels.pack import PLANES, LutWeight
from qkernels.testing.others import assert_twice_as_good
from qkernels.testing.others import packed_weight as make

from .isas import ALL, SAME_BITS

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BACKENDS = [b for b in backends.backends_of("lut_linear") if b in ("cpu", "reference")] + [None]


def randint(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)).float()


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(("N", "K", "P"), [(1, 1, 1), (16, 64, 16), (17, 96, 17 * 3), (33, 257, 33), (48, 256, 48 * 8)])
def test_integers_multiply_exactly(backend, bits, N, K, P):
    w = make(N, K, bits=bits, P=P, integers=True)
    dense = w.dequantize()
    for M in (1, 2, 7, 16, 33):
        x, bias = randint(M, K), randint(N, seed=2)
        want = F.linear(x.double(), dense.double())
        assert torch.equal(qk.lut_linear(x, w, backend=backend), want.float())
        assert torch.equal(qk.lut_linear(x, w, bias, backend=backend), (want + bias).float())


compiled = pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled kernels are not built")


@compiled
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("group", [32, 64, 96, 128, 160, 256, None])
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_integers_multiply_exactly_on_each_instruction_set(bits, group, name, isa):
    """Every kernel: rows in registers, rows that share what is decoded, parts of tiles, stripes and groups."""
    assert isa(name) == name
    g = torch.Generator().manual_seed(bits)
    widths = [1, 31, 33, 65, 127, 128, 129, 255, 257, 300] if group is None else [group, 3 * group, 5 * group]
    for i, K in enumerate(widths):
        N = (1, 16, 17, 33, 66)[i % 5]
        codes = torch.randint(0, 2**bits, (N, K), generator=g, dtype=torch.uint8)
        levels = torch.randperm(2**bits, generator=g) - 2.0 ** (bits - 1)  # not uniform
        for table in (levels, levels.sort().values):
            scale = torch.randint(1, 5, (N * (K // group if group else 1),), generator=g).float()
            w = LutWeight.pack(codes, table, scale, bits=bits)
            dense = w.dequantize()
            assert torch.equal(qk.lut_dequantize(w, backend="cpu"), dense)
            for M in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 32, 33):
                x, bias = randint(M, K), randint(N, seed=2)
                y = qk.lut_linear(x, w, bias if M % 2 else None, backend="cpu")
                assert torch.equal(y, F.linear(x, dense, bias if M % 2 else None)), (K, M)


@compiled
@pytest.mark.parametrize("zeros", [0, 15, 16])
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_instruction_sets_agree_to_the_bit(bits, zeros, isa):
    """And rows in any batch: for 2 to 40 of them the sums have one order, and another for one alone.

    zeros: how many of a level's last bits are 0; 16: of bfloat16.
    """
    for N, K, P in ((17, 96, 17 * 3), (33, 257, 33), (70, 1024, 70 * 2), (16, 320, 16 * 2)):
        w, bias = make(N, K, bits=bits, P=P), randn(N, seed=2)
        w = dataclasses.replace(w, levels=(w.levels.view(torch.int32) >> zeros << zeros).view(torch.float32))
        x = torch.cat(
            [randn(39, K), randn(1, K) * 1e-38]
        )  # the last row's products are denormal: one rounding there too
        want = alone = None
        for name in SAME_BITS:
            assert isa(name) == name
            assert torch.equal(qk.lut_dequantize(w, backend="cpu"), w.dequantize())
            for M in (40, 2, 3, 5, 7, 8, 11):
                y = qk.lut_linear(x[-M:], w, bias, backend="cpu")
                want = y if want is None else want
                assert torch.equal(y, want[-M:]), (name, M)
            y = torch.cat([qk.lut_linear(row[None], w, bias, backend="cpu") for row in x])
            alone = y if alone is None else alone
            assert torch.equal(y, alone), name


@compiled
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_product_and_its_sum_are_rounded_once(sign, name, isa):
    """c + a * b with c = 1 + eps and a * b just below eps / 2: as a double it is a tie, and would go up."""
    isa(name)
    eps, d = 2.0**-23, 2.0**-18
    w = LutWeight.pack(torch.tensor([[0, 1]]), torch.tensor([1, 1 + d]), torch.ones(1), bits=1)
    x = sign * torch.tensor([[1 + eps, (1 - d) * eps / 2]]).repeat(2, 1)  # a row alone adds sums of a nibble's products
    assert qk.lut_linear(x, w, backend="cpu").tolist() == [[sign * (1 + eps)]] * 2


@compiled
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_a_scale_multiplies_sums_of_at_most_128_products(bits, name, isa):
    """128 of them stay below the largest float32, 137 would not; and sums of one sign are as good as PyTorch's."""
    isa(name)
    level = torch.tensor(2.5e36).bfloat16().float().item()
    w = LutWeight.pack(
        torch.ones(20, 1024, dtype=torch.uint8), torch.tensor([0.0, level]), torch.tensor([1e-36]), bits=bits
    )
    for M in (1, 2, 4, 9, 33):
        for dtype in (torch.float32, torch.bfloat16):
            assert qk.lut_linear(torch.ones(M, 1024, dtype=dtype), w, backend="cpu").isfinite().all(), M
    g = torch.Generator().manual_seed(bits)
    for _ in range(4):
        codes = torch.randint(0, 2, (64, 1024), generator=g)
        w = LutWeight.pack(codes, torch.tensor([0.0, 1.0]), torch.rand(64, generator=g) + 0.5, bits=bits)
        x = torch.rand(9, 1024, generator=g)
        for M in (1, 2, 9):
            assert_twice_as_good(qk.lut_linear(x[:M], w, backend="cpu"), x[:M], w.dequantize(), None)


@compiled
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_pads_a_row_adds_nothing(dtype, bits, name, isa):
    """Not even where level 0, which stands there, is not finite, or the scale: K is whole sub-blocks."""
    isa(name)
    for K, levels in itertools.product((32, 64, 96), ([0.0, 1.0], [0.0, 1.0, 5.0])):  # in integers, and not
        codes = torch.ones(20, K, dtype=torch.uint8)
        levels = torch.tensor(levels[: 2**bits])
        w = LutWeight.pack(codes, levels, torch.ones(K // 32 * 20), bits=bits, group_size=32)
        x = torch.ones(17, K, dtype=dtype)
        w.levels[0] = float("nan")
        for M in (1, 2, 17):
            assert (qk.lut_linear(x[:M], w, backend="cpu") == K).all()
        w.levels[0] = 0.0
        w.scale.fill_(torch.inf)
        for M in (1, 2, 17):
            assert (qk.lut_linear(x[:M], w, backend="cpu") == torch.inf).all()


@compiled
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_not_finite_stays_in_its_row(bits):
    """The padding of rows, columns and tiles multiplies with zeros only where x is finite."""
    w = make(20, 100, bits=bits, P=20)
    x = randn(10, 100)
    want = qk.lut_linear(x, w, backend="cpu")
    x[3, 99], x[7, 0] = float("nan"), float("inf")
    y = qk.lut_linear(x, w, backend="cpu")
    assert y[3].isnan().all() and not y[7].isfinite().any()
    rest = [m for m in range(10) if m not in (3, 7)]
    assert torch.equal(y[rest], want[rest])
    assert qk.lut_linear(x[3:4], w, backend="cpu").isnan().all()


@compiled
def test_a_large_batch_gives_the_bits_of_the_dequantized_layer(isa):
    """What a trained float32 layer computed, its packed form computes, but on matrix tiles."""
    isa(SAME_BITS[-1])
    w, x, bias = make(40, 96, P=40), randn(op._MANY_ROWS, 96), randn(40)
    assert torch.equal(qk.lut_linear(x, w, bias, backend="cpu"), F.linear(x, w.dequantize(), bias))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_weight_is_not_rounded_to_the_dtype_of_x(backend, dtype, factor):
    """Scales that float16 cannot hold, for few and for many rows: the same accuracy."""
    w = make(64, 256, P=64)
    w = dataclasses.replace(w, scale=w.scale * factor)
    for M in (4, 40, op._MANY_ROWS):
        x = (randn(M, 256) / factor**0.5).to(dtype)
        truth = F.linear(x.double(), w.dequantize(torch.float64))
        y = qk.lut_linear(x, w, backend=backend)
        if truth.abs().max() > torch.finfo(dtype).max:
            continue
        allowed = torch.finfo(dtype).eps * truth.abs() + torch.finfo(torch.float32).eps * 256 * truth.abs().max()
        assert ((y.double() - truth).abs() <= allowed).all()


@compiled
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_levels_are_not_rounded_to_the_dtype_of_x(bits, name, isa):
    """What is left of a level beside one that bfloat16 has, for every number of rows of a kernel."""
    isa(name)
    codes = torch.zeros(20, 64, dtype=torch.uint8)
    codes[:, 7] = 1
    for rest in (2.0**-9, 2.0**-14, 2.0**-20):
        w = LutWeight.pack(codes, torch.tensor([0.25, 1 + rest]), torch.ones(1), bits=bits)
        for M in (1, 2, 3, 4, 5, 8, 9, 17, 40):
            x = torch.zeros(M, 64, dtype=torch.bfloat16)
            x[:, 7] = 256
            y = qk.lut_linear(x, w, torch.full((20,), -256.0), backend="cpu")
            assert (y == 256 * rest).all(), (rest, M)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_sums_are_within_twice_the_error_of_plain_pytorch(backend, dtype, bits):
    for N, K, P in ((40, 128, 160), (7, 300, 7)):
        w = make(N, K, bits=bits, P=P)
        x, bias = randn(9, K).to(dtype), randn(N).to(dtype)
        y = qk.lut_linear(x, w, bias, backend=backend)
        assert y.dtype == dtype
        assert_twice_as_good(y, x, w.dequantize(), bias)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_gives_the_same_bits_everywhere(backend, bits, dtype):
    for shape, P in (((40, 128), 160), ((7, 300), 7), ((5, 32, 3, 3), 45)):
        w = make(*shape, bits=bits, P=P)
        got = qk.lut_dequantize(w, dtype, backend=backend)
        want = w.dequantize(dtype)
        assert got.shape == shape and got.dtype == dtype
        assert torch.equal(got, want) and torch.equal(got.signbit(), want.signbit())


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_low_precision_scales_are_taken_as_they_are(scale_dtype):
    codes = torch.randint(0, 16, (20, 64))
    w = LutWeight.pack(codes, torch.randn(16), torch.rand(20) + 0.1, bits=4, scale_dtype=scale_dtype)
    assert torch.equal(qk.lut_dequantize(w), w.dequantize())
    assert torch.equal(qk.lut_linear(torch.eye(64), w), w.dequantize().T)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", ["float32", "bfloat16", "integers"])
def test_the_dtype_of_scales_changes_no_bit(levels, dtype, name, isa):
    """Whatever kernel multiplies: they read scales as they are."""
    isa(name)
    for bits in PLANES:
        for P in (37, 37 * 4, 37 * 8):
            w = make(37, 256, bits=bits, P=P, integers=levels == "integers")
            if levels == "bfloat16":
                w = dataclasses.replace(w, levels=w.levels.bfloat16().float())
            scale = torch.rand(w.scale.shape) + 0.1
            for scale_dtype in (torch.float16, torch.bfloat16):
                low = dataclasses.replace(w, scale=scale.to(scale_dtype))
                wide = dataclasses.replace(w, scale=low.scale.float())
                assert torch.equal(qk.lut_dequantize(low), qk.lut_dequantize(wide))
                for M in (1, 2, 5, 8, 20):
                    x = randn(M, 256).to(dtype)
                    got, want = (qk.lut_linear(x, v, backend="cpu") for v in (low, wide))
                    assert torch.equal(got, want), (bits, P, scale_dtype, M)


def test_leading_dimensions_and_layouts_of_x_are_free():
    w, bias = make(24, 64, P=24, integers=True), randint(24, seed=3)
    dense = w.dequantize()
    x = randint(2, 3, 5, 64)
    want = F.linear(x, dense, bias)
    assert torch.equal(qk.lut_linear(x, w, bias), want)
    assert torch.equal(qk.lut_linear(x[0, 0, 0], w, bias), want[0, 0, 0])
    assert torch.equal(qk.lut_linear(x.transpose(0, 2), w, bias), want.transpose(0, 2))
    assert torch.equal(qk.lut_linear(torch.cat([x, x], -1)[..., :64], w, bias), want)
    assert torch.equal(qk.lut_linear(x[:1, :1, :1].expand(2, 3, 5, 64), w, bias), want[:1, :1, :1].expand(2, 3, 5, 24))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_no_rows(backend):
    w, bias = make(24, 64), torch.randn(24)
    for shape in ((0, 64), (2, 0, 64)):
        x = torch.zeros(shape, requires_grad=True)
        y = qk.lut_linear(x, w, bias, backend=backend)
        assert y.shape == (*shape[:-1], 24)
        y.sum().backward()
        assert x.grad.shape == shape


def test_float64_is_computed_in_float64():
    w, x = make(24, 64, P=24), randn(5, 64).double()
    torch.testing.assert_close(qk.lut_linear(x, w), F.linear(x, w.dequantize(torch.float64)), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("bits", tuple(PLANES))
def test_gradients_reach_x_and_bias(bits, monkeypatch):
    monkeypatch.setattr(op, "_CHUNK", 16 * 96 * 2)  # two stripes of rows at a time: several chunks and a remainder
    w = make(75, 96, bits=bits, P=75 * 3, integers=True)
    x, bias, g = randint(3, 4, 96), randint(75, seed=2), randint(3, 4, 75, seed=5)
    grads = []
    for call in (lambda x, b: qk.lut_linear(x, w, b), lambda x, b: F.linear(x, w.dequantize(), b)):
        own = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        grads.append(torch.autograd.grad(call(*own), own, g))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_is_within_twice_the_error_of_plain_pytorch(dtype):
    w, g = make(80, 96, P=240), randn(6, 80).to(dtype)
    x = randn(6, 96).to(dtype).requires_grad_()
    (dx,) = torch.autograd.grad(qk.lut_linear(x, w), x, g)
    assert dx.dtype == dtype
    assert_twice_as_good(dx, g, w.dequantize().T.contiguous(), None)


def test_the_backward_never_holds_the_whole_float_weight(monkeypatch):
    monkeypatch.setattr(op, "_CHUNK", 16 * 64)
    w, sizes = make(256, 64), []
    whole = op._dequantize

    def spy(*args):
        sizes.extend([args[5] * args[6]] if args[-1] == "auto" else [])  # "auto" calls the op again with what it chose
        return whole(*args)

    monkeypatch.setattr(op, "_dequantize", spy)
    x = randn(2, 64).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = qk.lut_linear(x, w)
    y.sum().backward()
    assert sizes == [16 * 64] * 16
    assert sum(t.nbytes for t in saved) == w.nbytes


def test_the_graph_of_an_inference_call_says_auto():
    """Exported on a CPU, run elsewhere: the backend is chosen when the graph runs."""
    w = make(24, 64, P=24)

    class Layer(torch.nn.Module):
        def forward(self, x, codes, levels, scale):
            y = op.linear(x, codes, levels, scale, None, bits=4, group_size=64, n=24, k=64)
            return y + qk.lut_dequantize(LutWeight(codes, levels, scale, 4, 64, (24, 64)))[:, :1].T

    args = (randn(3, 64), w.codes, w.levels, w.scale)
    rows = torch.export.Dim("M", max=512)
    exported = torch.export.export(Layer(), args, dynamic_shapes=({0: rows}, None, None, None))
    calls = [node for node in exported.graph.nodes if "qkernels" in str(node.target)]
    assert len(calls) == 2 and all(node.args[-1] == "auto" for node in calls)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for M in (3, 1, 8):
        args = (randn(M, 64), *args[1:])
        assert torch.equal(again(*args), Layer()(*args))


def test_an_explicit_backend_stays_in_the_graph_and_the_environment_is_obeyed(monkeypatch):
    w, x = make(24, 64), randn(2, 64)
    monkeypatch.setenv("QKERNELS_BACKEND", "abacus")
    with pytest.raises(NotImplementedError, match="lut_linear: QKERNELS_BACKEND='abacus' cannot run: no such backend"):
        qk.lut_linear(x, w)
    assert torch.equal(qk.lut_linear(x, w, backend="reference"), F.linear(x, w.dequantize()))


@pytest.mark.parametrize("bits", tuple(PLANES))
def test_opcheck(bits):
    w, tests = make(24, 96, bits=bits, P=72), ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    rest = (bits, 32, 24, 96)
    for backend in ("auto", "reference"):
        for x, bias in ((randn(3, 96), randn(24)), (randn(1, 96).bfloat16(), None), (torch.zeros(0, 96), None)):
            args = (x, w.codes, w.levels, w.scale, bias, *rest, backend)
            torch.library.opcheck(torch.ops.qkernels.lut_linear.default, args, test_utils=tests)
        args = (w.codes, w.levels, w.scale, *rest, torch.bfloat16, backend)
        torch.library.opcheck(torch.ops.qkernels.lut_dequantize.default, args, test_utils=tests)


def test_compiles_whole_and_for_any_number_of_rows():
    w, bias = make(24, 64, P=24), randn(24).requires_grad_()
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")

    def layer(x):
        return qk.lut_linear(x.relu(), w, bias).square()

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=graphs)
    for M in (2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377):
        x = randn(M, 64).requires_grad_()
        got = torch.autograd.grad(compiled(x).sum(), (x, bias))
        want = torch.autograd.grad(layer(x).sum(), (x, bias))
        torch.testing.assert_close(got, want)
    assert graphs.frame_count <= 2


def test_autocast_casts_x_as_for_a_linear_layer():
    w, x, bias = make(24, 64, P=24), randn(3, 64), randn(24)
    with torch.autocast("cpu", torch.bfloat16):
        y = qk.lut_linear(x, w, bias)
        reference = qk.lut_linear(x, w, bias, backend="reference")
        assert F.linear(x, w.dequantize(), bias).dtype == y.dtype == torch.bfloat16
    want = F.linear(x.bfloat16().float(), w.dequantize(), bias).bfloat16()  # one rounding, float32 inside
    torch.testing.assert_close(y, want, rtol=2**-7, atol=0)
    assert torch.equal(reference, want)


CONVS = [
    dict(),
    dict(stride=2, padding=1),
    dict(stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    dict(padding="same", dilation=2),
    dict(padding="valid"),
    dict(groups=2, padding=1),
]


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d_gives_the_bits_of_pytorch_with_the_dequantized_weight(options, dtype):
    w, bias = make(6, 4 // options.get("groups", 1), 3, 3, bits=3, P=6), randn(6).to(dtype)
    x = randn(2, 4, 9, 8).to(dtype).requires_grad_()
    own = x.detach().clone().requires_grad_()
    y = qk.lut_conv2d(x, w, bias, **options)
    want = F.conv2d(own, w.dequantize(dtype), bias, **options)
    assert y.dtype == dtype and torch.equal(y, want)
    assert torch.equal(qk.lut_conv2d(x[0], w, bias, **options), F.conv2d(x[0], w.dequantize(dtype), bias, **options))
    g = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, g)[0], torch.autograd.grad(want, own, g)[0])


def test_one_level_of_eight_bits_is_evenly_spaced(monkeypatch):
    """Where AVX-512 BF16 multiplies many rows, which asks so."""
    w = LutWeight.pack(torch.zeros(24, 64, dtype=torch.uint8), torch.tensor([0.5]), torch.ones(24), bits=8)
    x = randn(600, 64).bfloat16()
    monkeypatch.setattr(torch.ops.qkernels_cpu, "isa", lambda name: "avx512bf16")
    assert op._by_instructions(x, w.levels, 8)
    assert not op._by_instructions(x, torch.tensor([0.0, 1.0, 3.0]), 8)
    torch.testing.assert_close(qk.lut_linear(x, w), F.linear(x, w.dequantize(x.dtype)))


W, X = make(24, 64), torch.randn(3, 64)
CONV, IMAGE = make(6, 4, 3, 3), torch.randn(2, 4, 9, 9)
META = LutWeight(*(t.to("meta") for t in (W.codes, W.levels, W.scale)), W.bits, W.group_size, W.shape)
REFUSED = [
    (qk.lut_linear, (X[:, :63], W), {}, ValueError, r"lut_linear: x must have shape \[\.\.\., K=64\], got \[3, 63\]"),
    (qk.lut_linear, (torch.tensor(1.0), W), {}, ValueError, r"x must have shape \[\.\.\., K=64\], got \[\]"),
    (qk.lut_linear, (X.int(), W), {}, TypeError, "x must be a float32, .* float64 tensor, got torch.int32"),
    (qk.lut_linear, (X.to(torch.float8_e4m3fn), W), {}, TypeError, "float64 tensor, got torch.float8_e4m3fn"),
    (qk.lut_linear, ([1.0], W), {}, TypeError, "x must be a Tensor, got list"),
    (qk.lut_linear, (X.to_sparse(), W), {}, TypeError, "lut_linear: x must be a dense tensor, .* got torch.sparse_coo"),
    (qk.lut_linear, (X.to_mkldnn(), W), {}, TypeError, "x must be a dense tensor, .* got torch._mkldnn"),
    (qk.lut_conv2d, (IMAGE.to_sparse(), CONV), {}, TypeError, "x must be a dense tensor, .* got torch.sparse_coo"),
    (qk.lut_linear, (X, torch.randn(24, 64)), {}, TypeError, "w must be a LutWeight, got Tensor"),
    (qk.lut_linear, (X, META), {}, ValueError, "x and the weight must be on one device, got cpu and meta"),
    (qk.lut_linear, (X, W, torch.zeros(23)), {}, ValueError, r"bias must have shape \[N=24\], got \[23\]"),
    (qk.lut_linear, (X, W, torch.zeros(24, 1)), {}, ValueError, r"bias must have shape \[N=24\], got \[24, 1\]"),
    (qk.lut_linear, (X, W, torch.zeros(24).int()), {}, TypeError, "bias must be a float tensor, got torch.int32"),
    (qk.lut_linear, (X, W, 1.0), {}, TypeError, "bias must be a float tensor, got float"),
    (qk.lut_linear, (X, W, torch.zeros(24, device="meta")), {}, ValueError, "bias and the weight .* got meta and cpu"),
    (qk.lut_linear, (X, W), {"backend": "cuda"}, NotImplementedError, "lut_linear: backend='cuda' cannot run: "),
    (qk.lut_dequantize, (torch.randn(2, 2),), {}, TypeError, "lut_dequantize: w must be a LutWeight, got Tensor"),
    (qk.lut_dequantize, (W, torch.int32), {}, TypeError, "dtype must be a float type .* got torch.int32"),
    (qk.lut_dequantize, (W, "float32"), {}, TypeError, "lut_dequantize: dtype must be a float type .* got 'float32'"),
    (
        qk.lut_dequantize,
        (W,),
        {"backend": "abacus"},
        NotImplementedError,
        "lut_dequantize: backend='abacus' cannot run: no such backend",
    ),
    (qk.lut_conv2d, (IMAGE, W), {}, ValueError, r"weight must have shape \[N, C / groups, kh, kw\], got \[24, 64\]"),
    (qk.lut_conv2d, (IMAGE, torch.randn(6, 4, 3, 3)), {}, TypeError, "lut_conv2d: w must be a LutWeight, got Tensor"),
    (qk.lut_conv2d, (IMAGE.int(), CONV), {}, TypeError, "lut_conv2d: x must be a float32, .*, got torch.int32"),
    (qk.lut_conv2d, (1.0, CONV), {}, TypeError, "lut_conv2d: x must be a Tensor, got float"),
    (qk.lut_conv2d, (IMAGE[:, :3], CONV), {}, ValueError, r"x must have shape \[B, C=4, H, W\] .* got \[2, 3, 9, 9\]"),
    (qk.lut_conv2d, (IMAGE, CONV, torch.zeros(5)), {}, ValueError, r"bias must have shape \[N=6\], got \[5\]"),
    (qk.lut_conv2d, (IMAGE.to("meta"), CONV), {}, ValueError, "on one device, got meta and cpu"),
]


@pytest.mark.parametrize(("call", "args", "kwargs", "exception", "message"), REFUSED)
def test_refuses_with_reason(call, args, kwargs, exception, message):
    with pytest.raises(exception, match=message):
        call(*args, **kwargs)


def test_a_weight_stays_a_plain_value():
    """The op reads the fields of the dataclass and nothing else: a replaced field is a changed weight."""
    doubled = dataclasses.replace(W, levels=W.levels * 2)
    assert torch.equal(qk.lut_linear(X, doubled, backend="reference"), 2 * qk.lut_linear(X, W, backend="reference"))
