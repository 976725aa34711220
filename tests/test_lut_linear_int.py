"""Integer activations times weights on powers of sqrt(2) or integers: exact sums, the same bits everywhere."""

import dataclasses
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qkernels as qk
from qkernels import backends
from qkernels.nn import LutLinear, QuantLinear
from qkernels.ops.blocks import int_range
from qkernels.ops.lut_linear_int import op, reference
from qkernels.pack import LutWeight
from qkernels.testing.others import assert_twice_as_good

from .isas import ALL
from .isas import SAME_BITS as ISAS
from .test_matmul import randn

GRIDS = [
    (1, "nozero"), (2, "exact"), (2, "nozero"), (3, "exact"), (3, "nozero"), (3, "release"), (4, "exact"),
    (4, "nozero"), (4, "release"), (1, "daq"), (2, "lsq"), (3, "lsq"), (4, "lsq"), (8, "lsq"), (2, "daq"), (4, "daq"),
    (8, "daq"), (2, "gap"), (3, "gap"), (4, "gap"), (5, "gap"), (4, "wide"), (1, "wide"),
]  # fmt: skip
SHAPES = [
    (1, 1, 1),
    (16, 64, 16),
    (17, 96, 51),
    (33, 257, 33),
    (20, 192, 40),
    (40, 320, 400),
    (5, 4100, 5),
    (16, 9000, 1),
    (24, 8256, 24),
]
compiled = pytest.mark.skipif("cpu" not in backends.backends_of("lut_linear_int"), reason="no compiled kernels")
BACKENDS = backends.backends_of("lut_linear_int")


def levels_of(grid: tuple[int, str]) -> torch.Tensor:
    """POST's, or integers: those of LSQ and DAQ, not evenly spaced ones, and as large as they may be."""
    bits, name = grid
    if name == "lsq":
        return torch.arange(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1))
    if name == "daq":
        return 2.0 * torch.arange(2**bits) - (2**bits - 1)
    if name == "gap":
        return torch.cat([torch.arange(2.0**bits - 1) - 2 ** (bits - 1), torch.tensor([16.0])])
    return torch.arange(2.0**bits) * (510 // (2**bits - 1)) - 255 if name == "wide" else qk.post_levels(bits, name)


def make(N: int, K: int, P: int = 1, grid: tuple[int, str] = (4, "exact"), seed: int = 0) -> LutWeight:
    g, levels = torch.Generator().manual_seed(seed), levels_of(grid)
    bits = next(b for b in (1, 2, 3, 4, 8) if 1 << b >= len(levels))
    codes = torch.randint(0, len(levels), (N, K), generator=g, dtype=torch.uint8)
    return LutWeight.pack(codes, levels, torch.rand(P, generator=g) + 0.1, bits=bits)


def integers(M: int, K: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, (M, K), generator=torch.Generator().manual_seed(seed)).to(dtype)


def want(x: torch.Tensor, step: torch.Tensor, w: LutWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """In float64, where each sum is exact, and rounded as promised; knows nothing of even and odd."""
    levels, scales, group = w.levels.double()[w.unpack().long()], w.scales().float(), w.group_size
    total = torch.zeros(x.shape[0], w.shape[0])
    for start in range(0, w.shape[1], group):
        for first in range(start, start + group, 4096):
            part = slice(first, min(first + 4096, start + group))
            total += (x[:, part].double() @ levels[:, part].T).float() * scales[:, start // group]
    return total * step[:, None] + (0 if bias is None else bias)


def cpu(x, step, w, bias) -> torch.Tensor:
    return op._cpu(x, step, 0, 0, None, None, 1, w.codes, w.levels, w.scale, bias, w.bits, w.group_size, *w.shape)


@compiled
@pytest.mark.parametrize("name", [*ISAS, *(["amx"] if "amx" in ALL else [])])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_the_kernels_are_exact_on_each_instruction_set(dtype, grid, name, isa):
    """Rows that share a pass and those that are left, parts of tiles and stripes, groups of 32 and long rows."""
    isa(name)
    for N, K, P in SHAPES:
        w, bias = make(N, K, P, grid), randn(N, seed=3)
        for M in (1, 2, 3, 4, 7, 15, *([16, 17, 33, 70, 300] if name == "amx" else [])):
            x, step = integers(M, K, dtype), torch.rand(M) + 0.01
            assert torch.equal(cpu(x, step, w, bias), want(x, step, w, bias)), (N, K, P, M)
        assert torch.equal(cpu(x, step, w, None), want(x, step, w))


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_grid_is_exact(grid, backend):
    for dtype in (torch.int8, torch.uint8):
        for N, K, P in ((17, 96, 51), (5, 4100, 5)):
            w, x, bias = make(N, K, P, grid), integers(6, K, dtype), randn(N, seed=3)
            for step in (torch.tensor([0.07]), torch.rand(3), torch.rand(6)):
                y = qk.lut_linear_int(x, step, w, bias, backend=backend)
                assert y.dtype == torch.float32
                assert torch.equal(y, want(x, step.repeat_interleave(6 // len(step)), w, bias))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_largest_sums_do_not_overflow(grid, backend, isa):
    top = len(levels_of(grid)) - 1
    for name in ISAS if backend == "cpu" else ISAS[:1]:
        isa(name)
        for code in (0, top):
            codes = torch.full((16, 8192), code, dtype=torch.uint8)
            w = LutWeight.pack(codes, levels_of(grid), torch.ones(1), bits=make(1, 1, 1, grid).bits)
            for value, dtype in ((255, torch.uint8), (-128, torch.int8), (127, torch.int8)):
                x = torch.full((3, 8192), value, dtype=dtype)
                y = qk.lut_linear_int(x, torch.ones(1), w, backend=backend)
                assert (y == levels_of(grid)[code] * value * 8192).all()


@compiled
def test_a_row_has_its_bits_in_any_batch_and_for_any_number_of_threads():
    w, x, step = make(70, 1024, 70 * 8), integers(40, 1024, torch.int8), torch.rand(40)
    whole, threads = qk.lut_linear_int(x, step, w), torch.get_num_threads()
    for M in (1, 2, 4, 5, 9, 31):
        assert torch.equal(qk.lut_linear_int(x[:M], step[:M], w), whole[:M])
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            for M in (1, 4, 40):
                assert torch.equal(qk.lut_linear_int(x[:M], step[:M], w), whole[:M])
    finally:
        torch.set_num_threads(threads)


METHODS = [
    qk.POST(bits=4, granularity=64), qk.POST(bits=4, granularity=64, grid="release"), qk.POST(bits=3, granularity=64),
    qk.LSQ(bits=4, granularity=64), qk.LSQ(bits=3, granularity=64), qk.CPQ(bits=4, granularity=64),
    qk.DAQ(bits=4, granularity=64), qk.DAQ(bits=1, granularity=64), qk.DAQ(bits=4, granularity=64, variant="scale"),
]  # fmt: skip


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_it_multiplies_what_layers_trained(method, signed):
    """The codes of activations and a trained layer's packed weight: the float product up to its own roundings."""
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(256, 24), weight=method)
    w = LutLinear.from_quant(layer).weight_lut
    x = randn(6, 256) if signed else randn(6, 256).relu()
    step, beta = torch.tensor([0.02]), torch.tensor([0.7, 1.0, 1.9])
    for steps in (step, step * beta):  # ASQ: one a sample, of two rows each
        hardened = qk.harden("lsq", x, steps, bits=8, signed=signed)
        codes = (hardened.codes.int() - 128).to(torch.int8) if signed else hardened.codes
        y = qk.lut_linear_int(codes, steps, w, layer.bias)
        quantized = qk.lsq(x, steps, bits=8, signed=signed)
        truth = F.linear(quantized.double(), w.dequantize().double(), layer.bias.double())
        size = F.linear(quantized.double().abs(), w.dequantize().double().abs(), layer.bias.double().abs())
        roundings = 256 // 64 * 3 + 3  # a sum, its product and their sum for each group; step, its product, the bias
        assert ((y - truth).abs() <= roundings * 2.0**-24 * size).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("bits", "signed"), [(8, True), (8, False), (4, True), (1, False)])
def test_a_float_x_is_quantized_as_lsq_does(bits, signed, dtype, name, isa):
    """Ties, what is clamped, infinities; a NaN and a step that is not positive in their rows; a step for each block."""
    isa(name)
    qmin, qmax = int_range("", bits, signed)
    for N, K, M in ((17, 96, 1), (33, 257, 6), (20, 192, 40)):
        w, bias = make(N, K), randn(N, seed=2)
        x = (torch.randint(-300, 300, (M, K), generator=torch.Generator().manual_seed(K)) / 2).to(dtype)
        x[0, :3] = torch.tensor([float("inf"), float("-inf"), -0.0])
        for step in (torch.tensor([1.0]), torch.rand(M) + 0.5):
            y = qk.lut_linear_int(x, step, w, bias, bits=bits, signed=signed)
            v = (x.float() / step[:, None]).clamp(qmin, qmax).round()
            codes = v.to(torch.int8 if signed else torch.uint8)
            assert y.dtype == torch.float32
            assert torch.equal(y, qk.lut_linear_int(codes, step, w, bias))
            assert torch.equal(y, qk.lut_linear_int(x, step, w, bias, bits=bits, signed=signed, backend="reference"))
            quantized = qk.lsq(x.float(), step, bits=bits, signed=signed)
            assert torch.equal(v * step[:, None] + 0.0, quantized + 0.0)
            assert_twice_as_good(y, quantized, w.dequantize(), bias)
        if M > 2:
            x[1, K - 1], step[2] = float("nan"), -1.0
            rest = [m for m in range(M) if m not in (1, 2)]
            z = qk.lut_linear_int(x, step, w, bias, bits=bits, signed=signed)
            assert z[1:3].isnan().all() and torch.equal(z[rest], y[rest])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("bits", "signed", "symmetric"),
    [(7, True, False), (8, True, True), (8, False, False), (4, True, False), (2, True, True), (1, True, False)],
)
def test_a_float_x_with_bounds_is_quantized_as_daq_does(bits, signed, symmetric, dtype, name, isa):
    """Halves between two codes, what is clamped, infinities; NaN and bounds or scales that are none in their rows."""
    isa(name)
    grid = {"bits": bits, "signed": signed, "symmetric": symmetric}
    last, halves = 2**bits - (2 if symmetric else 1), 2 if symmetric else 1
    for N, K, M in ((17, 96, 1), (33, 257, 6), (20, 1000, 40)):
        w, bias, g = make(N, K), randn(N, seed=2), torch.Generator().manual_seed(K)
        for P, width in [(P, width) for P in sorted({1, (M + 1) // 2, M}) for width in (1.0, 0.37, 1e-3)]:
            x = torch.randint(-2, 2 * last + 3, (M, K), generator=g) * (width / 2)
            x = (x if width == 1.0 else x + width * randn(M, K) * (torch.arange(K) % 2)).to(dtype)
            x[0, :3] = torch.tensor([float("inf"), float("-inf"), -0.0])
            lower = -width * torch.rand(P, generator=g) if P > 1 else torch.zeros(1)
            upper, scale = lower + width * last, torch.rand(P, generator=g) + 0.5
            hardened = qk.harden("daq", x.float().nan_to_num(), lower, upper, scale, **grid)
            whole = hardened.levels[hardened.codes.long()] / halves
            codes = whole.to(torch.int8 if signed else torch.uint8)
            assert torch.equal(codes.float(), whole)
            y = qk.lut_linear_int(x, scale, w, bias, bounds=(lower, upper), **grid)
            unit = hardened.scale * halves
            assert y.dtype == torch.float32 and torch.equal(y, qk.lut_linear_int(codes, unit, w, bias))
            reference = qk.lut_linear_int(x, scale, w, bias, bounds=(lower, upper), backend="reference", **grid)
            assert torch.equal(y, reference)
            quantized = qk.daq(x.float(), lower, upper, scale, **grid)
            assert torch.equal(codes * unit.repeat_interleave(M // P)[:, None] + 0.0, quantized)
            assert_twice_as_good(y, quantized, w.dequantize(), bias)
        if M > 3:
            x[1, K - 1], scale[2], upper[3], upper[4] = float("nan"), -1.0, lower[3], lower[4] - 1
            rest = [m for m in range(M) if m not in (1, 2, 3, 4)]
            for backend in (None, "reference"):
                z = qk.lut_linear_int(x, scale, w, bias, bounds=(lower, upper), backend=backend, **grid)
                assert z[1:5].isnan().all() and torch.equal(z[rest], y[rest])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("K", [1, 17, 96, 97])
def test_bounds_and_scales_of_any_size_give_what_daq_gives(K, name, isa):
    """Where N / (upper - lower) overflows, and scale / N underflows: at lower, 0 times infinity, is NaN for daq too."""
    isa(name)
    w, x = make(16, K), torch.rand(2, K, generator=torch.Generator().manual_seed(K)) + 0.1
    for lower, upper, scale in (
        (0.0, 5e-37, 1.0),
        (0.0, 1e-40, 1.0),
        (-1e-38, 1e-38, 2.0),
        (0.0, 1.0, 1e-45),
        (0.0, 3e38, 1e30),
    ):
        bounds, s = (torch.tensor([lower]), torch.tensor([upper])), torch.tensor([scale])
        for v in (x, torch.cat([x[:1], torch.full((1, K), lower)])):
            quantized = qk.daq(v, *bounds, s, bits=8, signed=False)
            y = qk.lut_linear_int(v, s, w, bits=8, signed=False, bounds=bounds)
            assert torch.equal(y.isnan().all(1), quantized.isnan().any(1))
            fine = ~quantized.isnan().any(1)
            assert_twice_as_good(y[fine], quantized[fine], w.dequantize(), None) if fine.any() else None
            want = qk.lut_linear_int(v, s, w, bits=8, signed=False, bounds=bounds, backend="reference")
            torch.testing.assert_close(y, want, rtol=0, atol=0, equal_nan=True)


def test_bounds_of_one_value_serve_every_step():
    w, x, scale = make(24, 64), randn(6, 64), torch.rand(3) + 0.5
    bounds = torch.tensor([-1.0]), torch.tensor([1.5], dtype=torch.float64)
    y = qk.lut_linear_int(x, scale, w, bits=3, bounds=bounds)
    each = [bound.float().expand(3) for bound in bounds]
    assert torch.equal(y, qk.lut_linear_int(x, scale, w, bits=3, bounds=each))
    rows = [qk.lut_linear_int(x[2 * p : 2 * p + 2], scale[p : p + 1], w, bits=3, bounds=bounds) for p in range(3)]
    assert torch.equal(y, torch.cat(rows))
    bounds = [bound.requires_grad_() for bound in bounds]
    assert not qk.lut_linear_int(x, scale.requires_grad_(), w, bits=3, bounds=bounds).requires_grad


def test_shapes_and_layouts():
    w, bias, x = make(24, 64, 24), randn(24), integers(12, 64, torch.int8)
    y = qk.lut_linear_int(x, torch.tensor([0.1]), w, bias)
    assert torch.equal(qk.lut_linear_int(x.view(2, 6, 64), torch.tensor([0.1, 0.1]), w, bias), y.view(2, 6, 24))
    assert torch.equal(qk.lut_linear_int(x[3], torch.tensor([0.1]), w, bias), y[3])
    assert torch.equal(qk.lut_linear_int(x.T.contiguous().T, torch.tensor([0.1]), w, bias), y)
    assert torch.equal(qk.lut_linear_int(x, torch.tensor([0.1]).double(), w, bias.double()), y)
    assert qk.lut_linear_int(x[:0], torch.tensor([0.1]), w).shape == (0, 24)
    half = dataclasses.replace(w, scale=w.scale.bfloat16())
    assert torch.equal(qk.lut_linear_int(x, torch.tensor([0.1]), half), want(x, torch.full((12,), 0.1), half))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_has_a_gradient_and_nothing_says_it_has(backend):
    w, x = make(16, 64), integers(3, 64, torch.int8)
    bias, step = torch.zeros(16, requires_grad=True), torch.ones(1, requires_grad=True)
    w.levels.requires_grad_()
    assert not qk.lut_linear_int(x, step, w, bias, backend=backend).requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_that_is_not_positive_gives_nan(backend):
    w, x = make(16, 64), integers(4, 64, torch.int8)
    y = qk.lut_linear_int(x, torch.tensor([1.0, 0.0, -1.0, 0.5]), w, backend=backend)
    assert y[1:3].isnan().all() and y[[0, 3]].isfinite().all()


def test_not_finite_steps_and_biases_stay_in_their_place():
    w, x, step, bias = make(24, 64, 24), integers(3, 64, torch.uint8), torch.rand(3), randn(24)
    plain = qk.lut_linear_int(x, step, w, bias)
    bias[5], step[1] = torch.inf, torch.nan
    y = qk.lut_linear_int(x, step, w, bias)
    assert y[1].isnan().all() and (y[[0, 2], 5] == torch.inf).all()
    rest = [n for n in range(24) if n != 5]
    assert torch.equal(y[[0, 2]][:, rest], plain[[0, 2]][:, rest])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_levels_are_split_exactly(grid):
    levels = levels_of(grid)
    for scale in (1.0, 2.0**-30, 2.0**5):
        split = reference.split(levels * scale)
        assert torch.equal(split.whole().double() * split.unit, (levels * scale).double())
        assert not (split.even * split.odd).any()
        spaced = len((levels.diff() / levels.abs().max()).unique()) == 1
        assert max(split.even.abs().max(), split.odd.abs().max()) <= (255 if spaced else 16)
    assert reference.split(torch.zeros(3)).whole().tolist() == [0, 0, 0]


def test_opcheck():
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for grid in ((4, "exact"), (2, "exact")):
        w = make(24, 96, 72, grid)
        for x, bias in ((integers(3, 96, torch.int8), randn(24)), (integers(1, 96, torch.uint8), None)):
            own = (w.codes, w.levels, w.scale, bias, w.bits, 32, 24, 96, "auto")
            op = torch.ops.qkernels.lut_linear_int.default
            torch.library.opcheck(op, (x, torch.rand(len(x)), 0, 0, None, None, 1, *own), test_utils=tests)
            bounds = (torch.tensor([-1.0]), torch.tensor([1.0]))
            torch.library.opcheck(op, (x.float(), torch.rand(1), -7, 7, *bounds, 2, *own), test_utils=tests)


class Layer(nn.Module):
    def __init__(self, w: LutWeight) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        return qk.lut_linear_int(x, step, self.w).relu()


def test_it_compiles_whole_and_an_exported_graph_says_auto():
    layer = Layer(make(24, 64, 24))
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    args = (integers(3, 64, torch.int8), torch.tensor([0.1]))
    rows = {0: torch.export.Dim("M", max=512)}
    exported = torch.export.export(layer, args, dynamic_shapes=(rows, None))
    ours = [node.args[-1] for node in exported.graph.nodes if "lut_linear_int" in str(node.target)]
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    assert ours == ["auto"]
    for M in (3, 1, 40):
        args = (integers(M, 64, torch.int8), torch.tensor([0.1]))
        assert torch.equal(compiled(*args), layer(*args)) and torch.equal(loaded(*args), layer(*args))


W, X, STEP = make(24, 64), integers(4, 64, torch.int8), torch.tensor([0.1])
ODD = LutWeight.pack(torch.zeros(24, 64, dtype=torch.uint8), torch.tensor([1.0, 0.3]), torch.ones(1), bits=4)
WIDE = LutWeight.pack(torch.zeros(24, 64, dtype=torch.uint8), torch.tensor([1.0, 0.0, 2.0**-5]), torch.ones(1), bits=4)
MANY = LutWeight.pack(torch.zeros(24, 64, dtype=torch.uint8), torch.arange(40.0) % 17, torch.ones(1), bits=8)
FAR = LutWeight.pack(
    torch.zeros(24, 64, dtype=torch.uint8), torch.tensor([1.0, 1.4140625 * 2**-6]), torch.ones(1), bits=4
)
REFUSED = [
    ((X, STEP, torch.randn(24, 64)), {}, TypeError, "w must be a LutWeight, got Tensor"),
    ((X.double(), STEP, W), {"bits": 4}, TypeError, "x must be an int8 or uint8 tensor, or .*, got torch.float64"),
    (([1], STEP, W), {}, TypeError, "x must be an int8 or uint8 tensor, or a float32, .*, got <class 'list'>"),
    ((X.float(), STEP, W), {}, ValueError, "bits goes with a float x, got bits=None and torch.float32"),
    ((X, STEP, W), {"bits": 8}, ValueError, "bits goes with a float x, got bits=8 and torch.int8"),
    ((X.float(), STEP, W), {"bits": 9}, ValueError, "lut_linear_int: bits must be"),
    ((X.float(), STEP, W), {"bits": "8"}, TypeError, "lut_linear_int: bits must be"),
    ((X[:, :63], STEP, W), {}, ValueError, r"x must have shape \[\.\.\., K=64\], got \[4, 63\]"),
    ((X, 0.1, W), {}, TypeError, "step must be a float tensor, got float"),
    ((X, STEP.int(), W), {}, TypeError, "step must be a float tensor, got torch.int32"),
    ((X, torch.tensor(0.1), W), {}, ValueError, r"step must have shape \[P\], P dividing the 4 rows, got \[\]"),
    ((X, torch.rand(3), W), {}, ValueError, r"step must have shape \[P\], P dividing the 4 rows, got \[3\]"),
    ((X, STEP, W, torch.zeros(23)), {}, ValueError, r"bias must have shape \[N=24\], got \[23\]"),
    ((X, STEP, W, torch.zeros(24).int()), {}, TypeError, "bias must be a float tensor, got torch.int32"),
    ((X, STEP.to("meta"), W), {}, ValueError, "all tensors must be on one device, got cpu, meta"),
    (
        (X, STEP, ODD),
        {},
        ValueError,
        r"lut_linear_int: levels must be 0 or \+-2\*\*\(j/2\), .* one unit, up to 16, or evenly spaced and up to 255, "
        "got 0.3",
    ),
    ((X, STEP, WIDE), {}, ValueError, r"at most 2\*\*4 times the smallest of their kind, got 2\*\*5 times"),
    ((X, STEP, FAR), {}, ValueError, "at most 16.0625 times their smallest power of 2, got 64"),
    ((X, STEP, MANY), {}, ValueError, "levels that are not evenly spaced must be at most 32, got 40"),
    ((X, STEP, W), {"symmetric": True}, ValueError, "symmetric goes with bounds, got bounds=None"),
    ((X, STEP, W), {"bounds": (STEP, STEP)}, ValueError, "bounds go with a float x, got torch.int8"),
    ((X.float(), STEP, W), {"bits": 4, "bounds": STEP}, TypeError, r"bounds must be \(lower, upper\), got Tensor"),
    ((X.float(), STEP, W), {"bits": 4, "bounds": (STEP,)}, TypeError, r"bounds must be \(lower, upper\), got 1 values"),
    ((X.float(), STEP, W), {"bits": 4, "signed": None}, TypeError, "signed must be a bool, got NoneType"),
    (
        (X.float(), STEP, W),
        {"bits": 4, "signed": False, "symmetric": True, "bounds": (STEP, STEP)},
        ValueError,
        "lut_linear_int: a symmetric grid must be signed, got signed=False",
    ),
    ((X.float(), STEP, W), {"bits": 4, "bounds": (0.0, STEP)}, TypeError, "lower must be a float tensor, got float"),
    (
        (X.float(), torch.rand(2), W),
        {"bits": 4, "bounds": (STEP, torch.rand(4))},
        ValueError,
        r"upper must have shape \[1\] or \[P=2\], got \[4\]",
    ),
    (
        (X.float(), STEP, W),
        {"bits": 8, "bounds": (-STEP, STEP)},
        ValueError,
        r"lut_linear_int: bits must be between 1 and 7 \(signed\), got 8",
    ),
    (
        (X.float(), STEP, W),
        {"bits": 1, "bounds": (-STEP, STEP), "symmetric": True},
        ValueError,
        r"lut_linear_int: bits must be between 2 and 8 \(symmetric\), got 1",
    ),
    (
        (X.float(), STEP, W),
        {"bits": 2, "bounds": (STEP.to("meta"), STEP)},
        ValueError,
        "all tensors must be on one device, got cpu, meta",
    ),
    ((X.float().to_sparse(), STEP, W), {"bits": 4}, TypeError, "x must be a dense tensor, .* got torch.sparse_coo"),
    ((X, STEP, W), {"backend": "cuda"}, NotImplementedError, "lut_linear_int: backend='cuda' cannot run: "),
]


@pytest.mark.parametrize(("args", "kwargs", "exception", "message"), REFUSED)
def test_refuses_with_reason(args, kwargs, exception, message):
    with pytest.raises(exception, match=message):
        qk.lut_linear_int(*args, **kwargs)
