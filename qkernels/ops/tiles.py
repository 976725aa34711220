"""Triton pieces that block-wise quantizers share: how [P, L] is cut into tiles, and the maths they have in common."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """A program works on ROWS blocks x BLOCK elements: many short blocks at once, or one piece of a long one."""

    P: int
    L: int
    ROWS: int
    BLOCK: int
    num_warps: int = 8

    @property
    def columns(self) -> int:  # pieces a block
        return triton.cdiv(self.L, self.BLOCK)

    @property
    def grid(self) -> tuple[int]:
        return (triton.cdiv(self.P, self.ROWS) * self.columns,)


def pick(P: int, numel: int, elements: int = 2048) -> Tiles:
    """2048 elements a program of 8 warps: 8 a thread, one 16-byte load of bfloat16.

    More a thread need more registers than tests/test_triton_aot.py allows, and too few warps fit an SM; a kernel with
    several sums asks for fewer elements. (Not yet timed on a GPU.)
    """
    L = numel // P
    block = min(elements, triton.next_power_of_2(max(L, 1)))
    return Tiles(P, L, min(elements // block, triton.next_power_of_2(P)), block)


def partials(tiles: Tiles, like: Tensor) -> Tensor:
    """[P, columns]: one sum a block and piece, added in a fixed order by ``total``."""
    return torch.zeros(tiles.P, max(tiles.columns, 1), dtype=torch.float32, device=like.device)


@triton.jit
def tile(P, L, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's (blocks [ROWS], offsets [ROWS, BLOCK], their mask, offsets of its partial sums [ROWS])."""
    pid = tl.program_id(0).to(tl.int64)
    rows = pid // columns * ROWS + tl.arange(0, ROWS)
    cols = pid % columns * BLOCK + tl.arange(0, BLOCK)
    mask = (rows < P)[:, None] & (cols < L)[None, :]
    return rows, rows[:, None] * L + cols[None, :], mask, rows * columns + pid % columns


@triton.jit
def load_parameter(ptr, rows, P):
    """[ROWS, 1] float32; NaN where it is not positive."""
    s = tl.load(ptr + rows, mask=rows < P, other=1.0).to(tl.float32)[:, None]
    return tl.where(s > 0, s, float("nan"))


@triton.jit
def clamp(v, lo, hi):
    """A NaN stays: both comparisons are false for it."""
    return tl.where(v < lo, lo, tl.where(v > hi, hi, v))


@triton.jit
def round_even(v):
    """Half to even, never -0. Exact for |v| <= 2**22: the sum has no fraction bits left."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def relative_weight(v):
    """2**v - 2**-64 for v in [-64, 0], as csrc/common/functions.h has it."""
    n = round_even(v)
    r = v - n
    p = r * 1.5353362e-4 + 1.3398875e-3
    p = p * r + 9.6184369e-3
    p = p * r + 5.5503324e-2
    p = p * r + 2.4022648e-1
    p = p * r + 6.9314718e-1
    power = (((n + 12582912.0).to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)  # 2**n
    return (p * r + 1.0) * power - 5.421010862427522e-20


@triton.jit
def expm1(v):
    """e**v - 1 for v <= 88, also near 0; as csrc/common/functions.h has it."""
    c = clamp(v, -87.3, 88.0)
    n = round_even(c * 1.44269504088896341)
    r = (c - n * 0.693359375) + n * 2.12194440e-4
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    power = (((n + 12582912.0).to(tl.int32, bitcast=True) + 127) << 23).to(tl.float32, bitcast=True)  # 2**n
    return (p * (r * r) + r) * power + (power - 1.0)
