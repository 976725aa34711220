"""lut_linear by AVX-512 BF16: rows of bfloat16, levels that are bfloat16 values, of 8 bits evenly spaced ones."""

import dataclasses

import pytest
import torch

import qkernels as qk
from qkernels.ops.lut_linear import op
from qkernels.pack import LutWeight
from qkernels.testing.others import assert_twice_as_good

from .isas import ALL
from .test_matmul import randn

pytestmark = pytest.mark.skipif("avx512bf16" not in ALL, reason="this machine has no AVX-512 BF16")
SHAPES = [(40, 128, 160), (7, 300, 7), (70, 1024, 70 * 8), (33, 192, 33 * 6), (3, 31, 3), (64, 257, 64)]


@pytest.fixture(autouse=True)
def pairs(isa):
    isa("avx512bf16")


def weight(N: int, K: int, P: int, bits: int) -> LutWeight:
    g = torch.Generator().manual_seed(bits)
    levels = torch.arange(-128.0, 128) if bits == 8 else torch.randn(2**bits, generator=g).bfloat16().float()
    codes, scale = torch.randint(0, 2**bits, (N, K), generator=g), torch.rand(P, generator=g) + 0.1
    return LutWeight.pack(codes, levels, scale, bits=bits)


def linear(x: torch.Tensor, w: LutWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    return qk.lut_linear(x, w, bias, backend="cpu")


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_sums_are_within_twice_the_error_of_plain_pytorch(bits):
    for N, K, P in SHAPES:
        w, bias, x = weight(N, K, P, bits), randn(N), randn(49, K).bfloat16()
        for M in (1, 2, 5, 24, 49):
            assert_twice_as_good(linear(x[:M], w, bias), x[:M], w.dequantize(), bias)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_row_has_its_bits_in_any_batch_of_two_rows_or_more(bits):
    for N, K, P in SHAPES:
        w, x = weight(N, K, P, bits), randn(530, K).bfloat16()
        want = linear(x, w)
        for M in (2, 3, 4, 5, 11, 24, 25, 49, 513):
            assert torch.equal(linear(x[:M], w), want[:M]), M


def test_more_rows_than_are_taken_at_a_time():
    K = 40000
    at_a_time = (4 << 20) // (K * 24) * 24
    w, x = weight(20, K, 20, 4), randn(at_a_time + 1, K).bfloat16()
    assert torch.equal(linear(x, w)[-2:], linear(x[-2:], w))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("M", [1, 2, 7, 30])
def test_what_is_not_finite_stays_in_its_row(M, bits):
    w, x = weight(40, 256, 40, bits), randn(M, 256).bfloat16()
    want = linear(x, w)
    bad = x.clone()
    bad[0, 3] = float("nan")
    y = linear(bad, w)
    assert y[0].isnan().all() and torch.equal(y[1:], want[1:])
    bad[0, 3] = float("inf")
    y = linear(bad, w)
    assert not y[0].isfinite().any() and torch.equal(y[1:], want[1:])


@pytest.mark.parametrize("M", [1, 2, 7, 30])
def test_rows_whose_products_are_denormal_come_from_another_kernel(M):
    w, x = weight(40, 256, 40, 4), randn(M, 256)
    x[0] *= 2.0**-124
    x = x.bfloat16()
    y, truth = linear(x, w).double(), x.double() @ w.dequantize(torch.float64).T
    size = x.double().abs() @ w.dequantize(torch.float64).abs().T
    assert ((y - truth).abs() <= 2.0**-20 * size + 2.0**-8 * truth.abs() + 2.0**-134).all()
    assert y[0].abs().sum() > 0


@pytest.mark.parametrize("M", [1, 2, 7])
def test_small_rows_times_small_levels_come_from_another_kernel(M):
    """Each by itself is far from denormal; their products, at 2**-130, are not."""
    w, x = weight(40, 256, 40, 4), (randn(M, 256) * 2.0**-70).bfloat16()
    small = dataclasses.replace(w, levels=w.levels * 2.0**-60)
    truth = linear((x.float() * 2.0**60).bfloat16(), small) * 2.0**-60  # denormal too, of sums that were not
    assert torch.allclose(linear(x, small).double(), truth.double(), rtol=2.0**-6, atol=2.0**-133)
    assert linear(x, small).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e-39, 1 / 3])
def test_other_levels_come_from_another_kernel(value):
    """Not finite, denormal or not a bfloat16: the bits are those without the instruction."""
    w, x = weight(40, 256, 40, 4), randn(9, 256).bfloat16()
    levels = w.levels.clone()
    levels[5] = value
    w = dataclasses.replace(w, levels=levels)
    y = [linear(x[:M], w) for M in (1, 9)]
    torch.ops.qkernels_cpu.isa("avx512")
    for M, got in zip((1, 9), y, strict=True):
        assert torch.equal(got.isnan(), linear(x[:M], w).isnan())
        assert torch.equal(got.nan_to_num(), linear(x[:M], w).nan_to_num())


def test_what_many_rows_are_multiplied_by():
    x, levels = randn(4, 8), torch.arange(16.0)
    assert op._by_instructions(x.bfloat16(), levels, 4)
    assert op._by_instructions(x.bfloat16(), torch.arange(256.0), 8)
    assert not op._by_instructions(x.bfloat16(), torch.arange(256.0).sqrt().bfloat16().float(), 8)
    assert not op._by_instructions(x.half(), levels, 4)
    assert not op._by_instructions(x, levels, 4)
    assert not op._by_instructions(x.bfloat16(), levels / 3, 4)
