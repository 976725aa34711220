"""What the kernels of lut_linear for a GPU promise and a machine without one can show. Their CUDA part runs in
tests/test_native.py, thread by thread; tests/test_gpu.py is for a GPU."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import qkernels as qk
from qkernels.ops.lut_linear import op
from qkernels.ops.lut_linear.plan import (
    MOST_COLUMNS,
    MOST_PREFILL_ROWS,
    MOST_ROWS,
    Plan,
    chunk_rows,
    fills,
    pick,
)
from qkernels.pack import PLANES, LutWeight

from .test_gpu import SPREAD
from .test_matmul import assert_twice_as_good, make, randint, randn

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="tests/test_gpu.py runs it on the GPU")


@interpreted
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(("N", "K", "P"), [(1, 1, 1), (17, 96, 51), (33, 257, 33), (20, 512, 40)])
def test_triton_decodes_every_width_and_group(bits, N, K, P):
    w = make(N, K, bits=bits, P=P)
    got, want = qk.lut_dequantize(w, backend="triton"), w.dequantize()
    assert torch.equal(got, want) and torch.equal(got.signbit(), want.signbit())


@interpreted
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize("M", [1, 17, 65])
def test_triton_multiplies_integers_exactly(bits, M):
    for N, K, P in ((17, 96, 51), (35, 70, 35)):
        w = make(N, K, bits=bits, P=P, integers=True)
        for dtype, bias in ((torch.float32, randint(N, seed=2)), (torch.float16, None)):
            x = randint(M, K)
            want = F.linear(x.double(), w.dequantize().double(), None if bias is None else bias.double())
            assert torch.equal(qk.lut_linear(x.to(dtype), w, bias, backend="triton"), want.to(dtype))


@interpreted
def test_triton_keeps_a_nan_in_its_row_and_returns_no_minus_zero():
    w = make(20, 70, P=20)
    x = randn(3, 70)
    x[1, 0] = float("nan")
    y = qk.lut_linear(x, w, backend="triton")
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()
    zeros = LutWeight.pack(w.unpack(), torch.tensor([0.0, -0.0] * 8), torch.tensor([-1.0]), bits=4)
    assert not qk.lut_dequantize(zeros, backend="triton").signbit().any()


@interpreted
def test_triton_takes_low_precision_scales_and_no_rows():
    codes = torch.randint(0, 16, (20, 64))
    w = LutWeight.pack(codes, torch.randn(16), torch.rand(20) + 0.1, bits=4, scale_dtype=torch.bfloat16)
    assert torch.equal(qk.lut_dequantize(w, backend="triton"), w.dequantize())
    assert qk.lut_linear(torch.zeros(0, 64), w, backend="triton").shape == (0, 20)


@pytest.fixture
def cuda_calls(monkeypatch):
    """op._cuda_linear on CPU tensors: a device of 4 multiprocessors, and the calls of the decode kernel, not run."""
    calls = []

    def decode(x, codes, levels, scale, bias, bits, group_size, n, k, stripes, splits, warps, early):
        calls.append((x.shape[0], Plan("decode", stripes, splits, warps), *["early"] * early))
        return op._reference_linear(x, codes, levels, scale, bias, bits, group_size, n, k)

    monkeypatch.setattr(op, "_sms", lambda device: 4)

    def prefill(x, codes, levels, scale, bias, bits, group_size, n, k, splits, early):
        calls.append((x.shape[0], Plan("prefill", splits=splits), *["early"] * early))
        return op._reference_linear(x, codes, levels, scale, bias, bits, group_size, n, k)

    monkeypatch.setattr(torch.ops.qkernels_cuda, "lut_decode", decode, raising=False)
    monkeypatch.setattr(torch.ops.qkernels_cuda, "lut_prefill", prefill, raising=False)
    monkeypatch.setattr(op, "_CHUNK", 16 * 96 * 2)
    whole = op._dequantize
    monkeypatch.setattr(op, "_dequantize", lambda *args: whole(*args[:-1], "reference"))  # for "cuda"
    monkeypatch.setattr(op, "_on_gpu", lambda x: True)
    monkeypatch.setattr(op, "_product", lambda a, b: a.float() @ b.float())  # torch.mm with out_dtype is CUDA's
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("M", [0, 1, MOST_ROWS, MOST_ROWS + 1])
def test_cuda_decodes_for_few_rows_and_makes_the_weight_for_many(cuda_calls, dtype, M):
    w, x, bias = make(75, 96, P=225, integers=True), randint(M, 96).to(dtype), randint(75, seed=2)
    y = op._cuda_linear(x, w.codes, w.levels, w.scale, bias, 4, 32, 75, 96)
    assert y.dtype == dtype and torch.equal(y, F.linear(x.double(), w.dequantize().double(), bias.double()).to(dtype))
    decoded = dtype != torch.float32 and M <= MOST_ROWS
    assert cuda_calls == ([(M, pick(M, 75, 96, 4, dtype, 4))] if decoded else [])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("M", [MOST_ROWS + 1, 700])
def test_many_rows_on_cuda_meet_the_weight_in_their_dtype(cuda_calls, monkeypatch, dtype, M, with_bias):
    """As F.linear does with the weight in that dtype; parts that the library would split are summed in float32."""
    dtypes, products, inner, product = [], [], op._dequantize, op._product
    monkeypatch.setattr(op, "_product", lambda a, b: products.append(a) or product(a, b))
    monkeypatch.setattr(op, "_dequantize", lambda *args: dtypes.append((args[5], args[-2])) or inner(*args))
    monkeypatch.setattr(op, "chunk_rows", lambda *args: 32)  # rows of 75: two chunks and a remainder
    w, x, bias = make(75, 96, P=225), randn(M, 96).to(dtype), randn(75, seed=2) if with_bias else None
    y = op._cuda_linear(x, w.codes, w.levels, w.scale, bias, 4, 32, 75, 96)
    assert dtypes == [(32, dtype), (32, dtype), (11, dtype)]
    split = M <= 128 or with_bias  # sums that the library may split, and a bias that it would round
    assert len(products) == (3 if dtype.itemsize == 2 and split else 0)
    assert_twice_as_good(y, x, w.dequantize().to(dtype).float(), bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("M", [0, 3, 200])
def test_gradients_on_cuda_meet_the_weight_in_their_dtype(cuda_calls, monkeypatch, dtype, M):
    """A part of it at a time; sums of parts, and those of levels and scales, in float32."""
    inner, parts = op._dequantize, []
    monkeypatch.setattr(op, "_dequantize", lambda *args: parts.append((args[5], args[-2])) or inner(*args))
    monkeypatch.setattr(op, "cached_rows", lambda k: 32)
    w, x, g = make(75, 96, P=225), randn(M, 96).to(dtype), randn(M, 75).to(dtype)
    dx = op._times_weight(g, w.codes, w.levels, w.scale, 4, 32, 75, 96, torch.float32)
    assert dx.dtype == torch.float32 and parts == [(32, dtype), (32, dtype), (11, dtype)]
    torch.testing.assert_close(dx, g.float() @ w.dequantize().to(dtype).float(), rtol=1e-5, atol=1e-4)
    args = (w.codes, w.levels, w.scale, 4, 32, 75, 96, True, True)
    for got, want in zip(op._linear_table(g, x, *args), op._linear_table(g.float(), x.float(), *args), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_chunks_of_the_weight_fill_a_device_and_otherwise_its_cache():
    for M, K, sms in itertools.product((1, 65, 128, 129, 256, 512, 4096), (32, 4096, 8192, 1 << 20), (1, 108, 132)):
        rows = chunk_rows(M, K, sms)
        assert rows % 16 == 0 and (fills(M, rows, sms) or rows == (64 << 20) // K // 128 * 128 or rows == 16)
        assert rows * K <= 12 << 20 or rows == 16 or not fills(M, rows - 128, sms)
        assert rows * K <= 64 << 20
    assert (chunk_rows(256, 4096, 132), chunk_rows(4096, 4096, 132)) == (66 * 128, 3072)
    assert fills(256, 66 * 128, 132) and not fills(256, 65 * 128, 132)


@pytest.mark.parametrize("capability, switch", [((9, 0), "1"), ((10, 0), "1"), ((9, 0), "0"), ((8, 0), "1")])
def test_kernels_start_early_on_hopper_and_on_request_only(cuda_calls, monkeypatch, capability, switch):
    monkeypatch.setattr(op, "_capability", lambda device: capability)
    monkeypatch.setenv("QKERNELS_PDL", switch)
    monkeypatch.setenv("QKERNELS_WGMMA", "1")
    w = make(75, 192, P=225, integers=True)
    for M in (3, 100):
        op._cuda_linear(randint(M, 192).bfloat16(), w.codes, w.levels, w.scale, None, 4, 64, 75, 192)
    assert len(cuda_calls) == 1 + (capability == (9, 0))
    assert all(call[2:] == (("early",) if switch == "1" and capability == (9, 0) else ()) for call in cuda_calls)


@pytest.mark.parametrize("capability, switch", [((9, 0), "1"), ((9, 0), "0"), ((8, 0), "1")])
def test_the_wgmma_kernel_runs_on_hopper_and_on_request_only(cuda_calls, monkeypatch, capability, switch):
    monkeypatch.setattr(op, "_capability", lambda device: capability)
    monkeypatch.setenv("QKERNELS_WGMMA", switch)
    w, x = make(75, 192, P=225, integers=True), randint(100, 192).bfloat16()
    y = op._cuda_linear(x, w.codes, w.levels, w.scale, None, 4, 64, 75, 192)
    assert torch.equal(y, F.linear(x.double(), w.dequantize().double()).to(y.dtype))
    asked = capability == (9, 0) and switch == "1"
    assert cuda_calls == ([(100, Plan("prefill", splits=1))] if asked else [])


SHAPES = [
    (1, 1),
    (16, 64),
    (17, 4096),
    (768, 768),
    (4096, 4096),
    (14336, 4096),
    (4096, 14336),
    (152064, 8192),
    (1 << 24, 64),
]


@pytest.mark.parametrize("sms", [1, 108, 132, 10**6])
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_a_plan_covers_the_weight_within_the_limits_of_a_grid(N, K, bits, sms):
    plan = pick(1, N, K, bits, torch.bfloat16, sms)
    assert plan.kernel == "decode" and plan.warps in (1, 2, 4, 8) and plan.stripes % (8 // plan.warps) == 0
    assert 1 <= plan.splits <= max(1, -(-K // (128 if bits == 8 else 256)))
    assert -(-N // (16 * plan.stripes)) <= 65535


def test_the_weights_of_test_gpu_are_spread_in_every_way():
    plans = {pick(1, N, K, bits, torch.bfloat16, 132) for N, K, _ in SPREAD for bits in PLANES}
    assert max(p.splits for p in plans) > 4 and max(p.stripes for p in plans) > 1
    assert {p.warps for p in plans} >= {1, 2, 8}


@pytest.mark.parametrize(("N", "K"), [(4096, 4096), (14336, 4096), (4096, 14336), (28672, 8192), (8192, 28672)])
def test_a_plan_of_a_large_layer_keeps_most_of_the_device_busy(N, K):
    """Stripes x K that the slowest slot (two a multiprocessor) works on, against an equal share."""
    plan = pick(1, N, K, 4, torch.bfloat16, 132)
    rows, batches = N // 16, K // 256
    waves = -(-(-(-rows // plan.stripes) * plan.splits) // 264)
    each = plan.stripes * -(-batches // plan.splits)
    assert rows * batches / 264 >= 0.8 * waves * each


def test_how_k_is_split_does_not_depend_on_the_number_of_rows():
    plans = {pick(M, 4096, 4096, 4, torch.float16, 132) for M in range(1, MOST_ROWS + 1)}
    assert plans == {Plan("decode", stripes=1, splits=1, warps=8)}


def test_what_the_wgmma_kernel_is_picked_for():
    args = (4096, 4096, 4, torch.bfloat16, 132)
    assert pick(128, *args, wgmma=True) == Plan("prefill", splits=4)  # 32 blocks of 128 x 128
    assert pick(MOST_PREFILL_ROWS, *args, wgmma=True) == Plan("prefill", splits=1)
    assert pick(128, 128, 512, 4, torch.float16, 132, wgmma=True) == Plan("prefill", splits=1)  # two batches
    for group_size, kernel in (
        (4096, "prefill"),
        (64, "prefill"),
        (192, "prefill"),
        (32, "dequantize"),
        (96, "dequantize"),
    ):
        assert pick(128, *args, group_size=group_size, wgmma=True).kernel == kernel
    assert pick(MOST_ROWS, *args, wgmma=True) == pick(MOST_ROWS, *args)
    for M in (MOST_ROWS + 1, MOST_PREFILL_ROWS):
        assert pick(M, *args).kernel == "dequantize"
    assert pick(MOST_PREFILL_ROWS + 1, *args, wgmma=True).kernel == "dequantize"
    assert pick(128, 4096, 4096, 4, torch.float32, 132, wgmma=True).kernel == "dequantize"


def test_what_is_not_decoded():
    dequantize = Plan("dequantize")
    assert pick(1, 64, 64, 4, torch.float32, 132) == dequantize
    assert pick(MOST_ROWS + 1, 64, 64, 4, torch.bfloat16, 132) == dequantize
    assert pick(1, 64, MOST_COLUMNS, 4, torch.bfloat16, 132) == dequantize
    assert pick(1, 64, MOST_COLUMNS - 32, 4, torch.bfloat16, 132).kernel == "decode"


@interpreted
def test_triton_is_as_good_as_plain_pytorch():
    w, x = make(40, 128, P=160), randn(9, 128)
    truth = F.linear(x.double(), w.dequantize(torch.float64))
    own = (F.linear(x, w.dequantize()) - truth).abs().max()
    size = F.linear(x.double().abs(), w.dequantize(torch.float64).abs()).max()
    got = qk.lut_linear(x, w, backend="triton")
    assert (got - truth).abs().max() <= 2 * own + torch.finfo(torch.float32).eps * size
