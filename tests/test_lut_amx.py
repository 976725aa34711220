"""lut_linear on the matrix tiles of a processor with AMX-BF16. tests/test_native.py runs its kernel in software too."""

import pytest
import torch
import torch.nn.functional as F

import qkernels as qk
from qkernels.pack import LutWeight
from qkernels.testing.others import assert_twice_as_good

from .isas import ALL
from .test_matmul import DTYPES, make, randn

pytestmark = pytest.mark.skipif("amx" not in ALL, reason="this machine has no AMX-BF16")
LEVELS = ("one part", "three parts")


def weight(N: int, K: int, P: int, bits: int = 4, levels: str = "one part") -> LutWeight:
    """Levels that are bfloat16 values, or sums of three."""
    w = make(N, K, bits=bits, P=P)
    table = w.levels.bfloat16().float() if levels == "one part" else w.levels
    return LutWeight(w.codes, table, w.scale, bits, w.group_size, w.shape)


@pytest.fixture(autouse=True)
def on_tiles(isa):
    assert isa("amx") == "amx"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_sums_are_within_twice_the_error_of_plain_pytorch(bits, levels, dtype):
    for N, K, P in ((40, 128, 160), (7, 300, 7), (70, 1024, 70 * 8)):
        w, x, bias = weight(N, K, P, bits, levels), randn(40, K).to(dtype), randn(N).to(dtype)
        for M in (2, 9, 40):
            y = qk.lut_linear(x[:M], w, bias, backend="cpu")
            assert y.dtype == dtype
            assert_twice_as_good(y, x[:M], w.dequantize(), bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", LEVELS)
def test_a_row_gives_the_same_bits_in_batches_of_few_and_of_many(levels, dtype):
    w, x = weight(70, 640, 70 * 5, levels=levels), randn(600, 640).to(dtype)
    few, many = qk.lut_linear(x[:5], w, backend="cpu"), qk.lut_linear(x[:500], w, backend="cpu")
    for M in (2, 3, 4):
        assert torch.equal(qk.lut_linear(x[5 - M : 5], w, backend="cpu"), few[5 - M :]), M
    for M in (6, 7, 8, 9, 16, 17, 48, 129):
        assert torch.equal(qk.lut_linear(x[100 : 100 + M], w, backend="cpu"), many[100 : 100 + M]), M
    wide = weight(70, 640, 70 * 5, bits=8, levels=levels)
    few, many8 = qk.lut_linear(x[:12], wide, backend="cpu"), qk.lut_linear(x[:500], wide, backend="cpu")
    for M in (2, 5, 9):
        assert torch.equal(qk.lut_linear(x[12 - M : 12], wide, backend="cpu"), few[12 - M :]), M
    for M in (13, 16, 17, 48, 129):
        assert torch.equal(qk.lut_linear(x[100 : 100 + M], wide, backend="cpu"), many8[100 : 100 + M]), M
    if dtype != torch.float32 or levels == "one part":  # else PyTorch's matmul
        assert torch.equal(qk.lut_linear(x, w, backend="cpu")[:500], many)


@pytest.mark.parametrize("M", [5, 6, 8])
def test_rows_that_integers_leave_over_have_the_bits_of_their_batch(M):
    """Of 8 bits and two parts, where 5 rows and 6 have another order: it is that of all rows, not of what is left."""
    w = make(8192, 1024, bits=8, P=8192)
    w = LutWeight(w.codes, 3.0 * (torch.arange(256) - 128), w.scale, 8, w.group_size, w.shape)
    x = 2.0**-9 * randn(M, 1024)
    x[:, 0] = 1  # beside it the others are too small for integers
    x = x.half()
    left = qk.lut_linear(x, w, backend="cpu")
    for kept in range(1, M):
        mixed = torch.cat([x[:kept], randn(M - kept, 1024).half()])
        assert torch.equal(qk.lut_linear(mixed, w, backend="cpu")[:kept], left[:kept]), kept


def test_more_rows_than_are_held_at_a_time():
    """K so long that x is taken in several turns; and threads share the stripes in any way."""
    w, x = weight(50, 20000, 50), randn(40, 20000).bfloat16()
    want, threads = qk.lut_linear(x, w, backend="cpu"), torch.get_num_threads()
    assert_twice_as_good(want, x, w.dequantize(), None)
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            assert torch.equal(qk.lut_linear(x, w, backend="cpu"), want)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_tiles_would_lose_come_from_the_other_kernel(dtype, isa):
    """What is not finite, and rows of nothing but tiny values: a tile counts as 0 what is below 2**-126."""
    w, x = weight(70, 256, 140), randn(40, 256)
    x[3, 7], x[11, 255], x[12, 0] = float("nan"), float("inf"), float("-inf")
    x[20] *= 1e-37
    x[21] = 0
    x, rest = x.to(dtype), [m for m in range(40) if m not in (3, 11, 12, 20)]
    y = qk.lut_linear(x, w, backend="cpu")
    assert y[3].isnan().all() and not y[11:13].isfinite().any() and not y[21].any()
    assert_twice_as_good(y[rest], x[rest], w.dequantize(), None)
    isa("avx512")
    want = qk.lut_linear(x[[3, 11, 12, 20]], w, backend="cpu")
    own = [3, 11, 12] if dtype == torch.float16 else [3, 11, 12, 20]  # in float16 the tiny row is 0
    assert torch.equal(y[own].isnan(), want[: len(own)].isnan())
    assert torch.equal(y[own].nan_to_num(), want[: len(own)].nan_to_num())
    isa("amx")
    assert torch.equal(y[rest], qk.lut_linear(x[rest], w, backend="cpu"))
    pair = qk.lut_linear(x[[20, 0]], w, backend="cpu")  # among others it is as it is among its like
    assert torch.equal(pair, y[[20, 0]])


def test_levels_that_are_denormal_are_not_lost():
    """To a tile they are 0, though one is a bfloat16 value. Only columns of such a level are not 0 in x."""
    codes = torch.randint(0, 2, (64,), generator=torch.Generator().manual_seed(0))
    w = LutWeight.pack(codes.expand(20, 64), torch.tensor([2.0**-133, 2.0]), torch.full((1,), 1e20), bits=1)
    x = torch.where(codes == 0, 1e17, 0.0).expand(5, 64)
    y = qk.lut_linear(x, w, backend="cpu")
    truth = F.linear(x.double(), w.dequantize(torch.float64))
    torch.testing.assert_close(y.double(), truth, rtol=64 * 2.0**-24, atol=0)  # 64 additions of one sign


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_that_are_denormal_are_not_lost_beside_huge_levels(bits, isa):
    w, x = weight(20, 64, 20, bits), 1e-39 * randn(14, 64)
    levels = (1e37 * (1 + w.levels.abs())).bfloat16().float()
    w = LutWeight(w.codes, levels, w.scale, bits, w.group_size, w.shape)
    y = qk.lut_linear(x, w, backend="cpu")
    isa("avx512")
    assert y.any() and torch.equal(y, qk.lut_linear(x, w, backend="cpu"))


FEW = [(4, "one part", 1), (4, "three parts", 5), (8, "one part", 1), (8, "three parts", 12), (8, "even", 5)]


@pytest.mark.parametrize(("bits", "levels", "most"), FEW)
def test_few_rows_of_levels_with_parts_go_by_the_kernels_without_tiles(bits, levels, most, isa):
    """As their bits show, in sums of nothing but roundings. They are faster, for that many rows."""
    codes = torch.randint(0, 2**bits, (70, 300), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    table = (64 * torch.arange(256.0) + 12345) / 1024 if levels == "even" else randn(2**bits)  # even: of two parts
    table = table.bfloat16().float() if levels == "one part" else table
    w = LutWeight.pack(torch.cat([codes, codes], 1), table, torch.ones(1), bits=bits)
    half = randn(20, 300).bfloat16()
    x = torch.cat([half, -half], 1)
    tiles = {M: qk.lut_linear(x[:M], w, backend="cpu") for M in {2, max(2, most), most + 1, 20}}
    isa("avx512")
    assert {M: torch.equal(y, qk.lut_linear(x[:M], w, backend="cpu")) for M, y in tiles.items()} == {
        M: most >= M for M in tiles
    }


def test_evenly_spaced_levels_of_two_parts_are_exact():
    w, x = weight(70, 640, 70 * 5, 8), randn(20, 640)
    w = LutWeight(w.codes, (64 * torch.arange(256.0) + 12345) / 1024, w.scale, 8, w.group_size, w.shape)
    for dtype in (torch.bfloat16, torch.float16):
        assert_twice_as_good(qk.lut_linear(x.to(dtype), w, backend="cpu"), x.to(dtype), w.dequantize(), None)


def test_levels_that_are_not_finite_stay_in_their_weights():
    w = weight(20, 64, 20)
    w.levels[3] = float("nan")
    x = randn(5, 64)
    y = qk.lut_linear(x, w, backend="cpu")
    assert torch.equal(y.isnan(), (w.unpack() == 3).any(1).expand(5, 20))


def test_the_other_users_of_the_tiles_find_them_as_they_were():
    """PyTorch's own bfloat16 matmul, between ours."""
    w, x, dense = weight(256, 512, 256), randn(64, 512).bfloat16(), randn(256, 512, seed=3).bfloat16()
    want, ours = F.linear(x, dense), qk.lut_linear(x, w, backend="cpu")
    for M in (64, 7, 33, 64):
        assert torch.equal(qk.lut_linear(x[:M], w, backend="cpu"), ours[:M])
        assert torch.equal(F.linear(x, dense), want)


def test_many_float32_rows_of_levels_with_three_parts_are_plain_pytorch():
    w, x = weight(40, 96, 40, levels="three parts"), randn(600, 96)
    assert torch.equal(qk.lut_linear(x, w, backend="cpu"), F.linear(x, w.dequantize()))
