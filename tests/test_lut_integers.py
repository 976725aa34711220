"""lut_linear in integers: levels that are multiples of one unit, as those of LSQ, CPQ and DAQ are. tests/test_native.py
compares its kernels with their definition, to the bit."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import qkernels as qk
from qkernels.pack import LutWeight
from qkernels.testing.others import assert_twice_as_good

from .isas import ALL
from .test_matmul import DTYPES, randn

pytestmark = pytest.mark.skipif(not ALL, reason="the compiled kernels are not built")
SHAPES = [
    (40, 128, 160),
    (7, 300, 7),
    (70, 1024, 70 * 8),
    (33, 192, 33 * 6),
    (33, 192, 33),
    (18, 384, 18 * 2),
    (3, 31, 3),
]


def levels(kind: str, bits: int) -> torch.Tensor:
    codes = torch.arange(2**bits)
    if kind == "LSQ":
        return (codes - 2 ** (bits - 1)).float()
    if kind == "DAQ":  # odd numbers
        return (2 * codes - 2**bits + 1).float()
    kept = torch.tensor([0, 1, -1, 2, -2, 4, -4, 8, -8, 16, -16, 32, -32, 64, -64, 96])  # DropBits: not evenly spaced
    return kept[: 2**bits].float() / 64


def weight(N: int, K: int, P: int, kind: str = "LSQ", bits: int = 4) -> LutWeight:
    g = torch.Generator().manual_seed(bits)
    codes, scale = torch.randint(0, 2**bits, (N, K), generator=g), torch.rand(P, generator=g) + 0.1
    return LutWeight.pack(codes, levels(kind, bits), scale, bits=bits)


CASES = [
    (kind, bits) for kind in ("LSQ", "DAQ", "DropBits") for bits in (1, 2, 3, 4, 8) if (kind, bits) != ("DropBits", 8)
]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_sums_are_within_twice_the_error_of_plain_pytorch(kind, bits, name, isa):
    isa(name)
    for N, K, P in SHAPES:
        w, bias = weight(N, K, P, kind, bits), randn(N)
        for dtype in DTYPES:
            x = randn(9, K).to(dtype)
            for M in (1, 2, 4, 9):
                y = qk.lut_linear(x[:M], w, bias, backend="cpu")
                assert y.dtype == dtype
                assert_twice_as_good(y, x[:M], w.dequantize(), bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["LSQ", "DAQ"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_row_alone_has_its_bits_on_every_instruction_set_and_in_the_batches_of_integers(bits, kind, dtype, isa):
    for N, K, P in SHAPES:
        w, bias, x = weight(N, K, P, kind, bits), randn(N, seed=2), randn(40, K).to(dtype) * 3
        want = None
        for name in ALL:
            isa(name)
            y = torch.cat([qk.lut_linear(row[None], w, bias, backend="cpu") for row in x[:8]])
            want = y if want is None else want
            assert torch.equal(y, want), name
        if "avx512bf16" in ALL:
            isa("avx512bf16")
            if bits == 8:
                most = 8 if dtype == torch.bfloat16 else 40
            else:
                most = {torch.float16: 40, torch.bfloat16: 1, torch.float32: 4 if bits == 3 else 5}[dtype]
            if w.group_size == K or w.group_size % {2: 128, 3: 128, 4: 64, 8: 1}[bits] == 0:
                for M in {2, 3, 4, 5, 7, 8, 40} & set(range(most + 1)):
                    assert torch.equal(qk.lut_linear(x[:M], w, bias, backend="cpu")[:8], want[:M]), M
        if "amx" in ALL:
            isa("amx")
            for M in (2, 3, 4, 5, 8) if dtype == torch.float32 or bits == 8 else (2, 3, 4):
                assert torch.equal(qk.lut_linear(x[:M], w, bias, backend="cpu"), want[:M]), M
            if dtype == torch.float32:
                assert torch.equal(qk.lut_linear(x, w, bias, backend="cpu")[:8], want)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("M", [1, 4])
def test_a_large_value_takes_nothing_from_its_neighbours(M, name, isa):
    """Where its own product is 0 it would be seen: sums are as good as if it were not there."""
    isa(name)
    w, x = weight(64, 512, 64), randn(M, 512)
    codes = w.unpack().clone()
    codes[:, 7] = 8  # level 0
    w = LutWeight.pack(codes, w.levels, w.scale.flatten()[:64], bits=4)
    dense = w.dequantize(torch.float64)
    for exponent in range(2, 40, 3):
        x[:, 7] = 2.0**exponent
        y, truth, size = (qk.lut_linear(x, w, backend="cpu"), x.double() @ dense.T, x.double().abs() @ dense.T.abs())
        assert ((y - truth).abs() <= 4 * 2.0**-24 * size).all(), exponent


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_largest_codes_times_the_largest_digits_are_exact(bits, dtype, name, isa):
    """Digits in base 256 of x's integers are -128 (lower ones of small values) or 127: no sum may be cut off."""
    isa(name)
    K = 384
    codes = torch.full((20, K), 2**bits - 1)
    w = LutWeight.pack(codes, torch.arange(2.0**bits), torch.ones(20), bits=bits)
    for value in (1 + 2**-6, 1 + 127 * 2**-7, -1 - 2**-6, 2**-2 + 2**-8):
        x = torch.full((1, K), value)
        x[:, ::4] = 1
        x[:, 1::4] = value * 2**-8
        y = qk.lut_linear(x.to(dtype), w, backend="cpu")
        assert torch.equal(y, torch.full((1, 20), x.double().sum().item() * (2**bits - 1)).to(dtype))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("bits", "by"), [(2, 88), (2, -88), (3, 38), (3, -38), (4, 23), (4, -23), (8, 2), (8, -2)])
def test_the_largest_levels_times_integers_that_carry_are_exact(bits, by, dtype, name, isa):
    """-255 + by * code and the like: codes and base are summed apart, and together they are far smaller. x's integers
    are 0x7f80 in their lower 16 bits: those of which the digits carry into the upper ones."""
    isa(name)
    K, levels = 256, torch.arange(2.0**bits) * by + (-255 if by > 0 else 255)
    codes = torch.full((20, K), 2**bits - 1)
    codes[::2, ::3] = 1
    w = LutWeight.pack(codes, levels, torch.ones(20), bits=bits)
    x = torch.full((1, K), 255 * 2.0**-14)
    x[0, ::128] = 1
    for sign in (1, -1):
        y = qk.lut_linear(sign * x.to(dtype), w, backend="cpu")
        truth = sign * x.double() @ w.dequantize(torch.float64).T
        assert torch.equal(y, truth.to(dtype)), (y - truth).abs().max()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_beyond_the_range_of_integers_come_from_another_kernel(dtype, name, isa):
    """Not finite, or of values so small or large that steps leave the range of float32."""
    isa(name)
    w, x = weight(40, 256, 40), randn(8, 256)
    x[1, 3], x[2, 255], x[3] = float("nan"), float("-inf"), 0
    if dtype != torch.float16:
        x[4] *= 1e-37
        x[5] *= 1e35
    x = x.to(dtype)
    for rows in ([0, 1], [1], [2], [3], [4], [5], list(range(8))):
        y = qk.lut_linear(x[rows], w, backend="cpu")
        for m, row in zip(rows, y, strict=True):
            if m == 1:
                assert row.isnan().all()
            elif m == 2:
                assert not row.isfinite().any()
            elif m == 3:
                assert not row.any()
            else:
                truth, size = (
                    F.linear(a.double(), b.double())
                    for a, b in ((x[m], w.dequantize()), (x[m].abs(), w.dequantize().abs()))
                )
                assert (
                    (row.double() - truth).abs()
                    <= 2.0**-24 * 8 * size + torch.finfo(dtype).eps * truth.abs() + 2.0**-140
                ).all(), m


@pytest.mark.skipif("amx" not in ALL, reason="this machine has no AMX")
def test_rows_of_small_values_beside_a_large_one_have_their_bits_in_any_batch_of_two_or_more(isa):
    isa("amx")
    w, x = weight(40, 512, 40), randn(20, 512)
    x[::3] = torch.softmax(20 * x[::3], -1)
    y = qk.lut_linear(x, w, backend="cpu")
    assert_twice_as_good(y, x, w.dequantize(), None)
    for rows in ([0, 1], [1, 0], [3, 6], list(range(7)), list(range(0, 20, 3))):
        assert torch.equal(qk.lut_linear(x[rows], w, backend="cpu"), y[rows])


@pytest.mark.parametrize("name", ALL)
def test_scales_and_biases_that_are_not_finite_stay_in_their_rows(name, isa):
    isa(name)
    w, x, bias = weight(20, 256, 40), randn(3, 256), torch.zeros(20)
    w.scale[0, 1, 3], w.scale[1, 0, 1], bias[5] = float("nan"), float("inf"), float("nan")
    for M in (1, 3):
        y = qk.lut_linear(x[:M], w, bias, backend="cpu")
        bad = torch.zeros(20, dtype=torch.bool)
        bad[[3, 17, 5]] = True
        assert torch.equal(y.isfinite(), ~bad.expand(M, 20))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("any_levels", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_threads_share_the_stripes_in_any_way(bits, any_levels, name, isa):
    isa(name)
    w, x, threads = weight(500, 1024, 500, bits=bits), randn(9, 1024), torch.get_num_threads()
    if any_levels:
        w = dataclasses.replace(w, levels=randn(2**bits, seed=3))
    want = [qk.lut_linear(x[:M].to(dtype), w, backend="cpu") for M in (1, 3, 9) for dtype in DTYPES]
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            assert all(torch.equal(qk.lut_linear(x[: len(y)].to(y.dtype), w, backend="cpu"), y) for y in want)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["LSQ", "any"])
def test_more_rows_than_are_held_at_a_time(kind, dtype, name, isa):
    """And rows among them that other kernels take, with a bias."""
    isa(name)
    w, x, bias = weight(40, 20000, 40), randn(70, 20000).to(dtype), randn(40, seed=2)
    if kind == "any":
        w = LutWeight(w.codes, randn(16).bfloat16().float(), w.scale, 4, w.group_size, w.shape)
    y = qk.lut_linear(x, w, bias, backend="cpu")
    assert_twice_as_good(y, x, w.dequantize(), bias)
    if kind == "LSQ" and (name, dtype) in (("amx", torch.float32), ("avx512bf16", torch.float16)):  # in integers
        assert all(torch.equal(qk.lut_linear(x[m : m + 1], w, bias, backend="cpu")[0], y[m]) for m in (0, 33, 69))
    x[3, 5], x[45, 19999], x[60] = float("inf"), float("nan"), 1e-38
    z = qk.lut_linear(x, w, bias, backend="cpu")
    rest = [m for m in range(70) if m not in (3, 45, 60)]
    assert torch.equal(z[rest], y[rest]) and not z[3].isfinite().any() and z[45].isnan().all()
    torch.testing.assert_close(z[60], bias.to(dtype), rtol=0, atol=1e-30)


@pytest.mark.parametrize("method", ["LSQ", "CPQ", "DAQ"])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_layers_train_is_for_these_kernels(method, bits):
    layer = torch.nn.Sequential(torch.nn.Linear(256, 48))
    qk.prepare_(layer, [("*", getattr(qk, method)(bits=bits))])
    with torch.no_grad():
        layer(torch.randn(8, 256))
    qk.convert_(layer.eval())
    levels = layer[0].levels
    assert torch.equal(levels, levels.round()) and levels.abs().max() <= 255
