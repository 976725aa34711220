"""Packed weights in Triton: portable, and simple. A program makes levels of codes by a look-up in memory, so it is the
cache that bounds it; the layout is drawn in qkernels/pack.py."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from qkernels.pack import PLANES, plane_shape


@dataclass(frozen=True)
class Tile:
    """A program: BLOCK_M rows of x times ROWS stripes of 16 rows of the weight, BLOCK columns at a time."""

    BLOCK_M: int
    ROWS: int
    BLOCK: int
    num_warps: int = 8


def pick(M: int) -> Tile:
    """What two programs a multiprocessor have registers for: float32 sums keep a whole row of both factors there. (Not
    yet timed on a GPU.)"""
    return Tile(16, 1, 32) if M <= 16 else Tile(32, 2, 16)


@triton.jit
def _plane(codes_ptr, first, tiles, n, k, mask, p: tl.constexpr):
    """The p bits of the codes (n, k) in the plane that starts at tile ``first``: t16_offset of qkernels/pack.py."""
    width: tl.constexpr = 256 // p
    tile = first + (n // 16).to(tl.int64) * tiles + k // width
    start = tile * 512 + (n % 8 * 4 + k % 32 // 8) * 16 + n % 16 // 8 * 8
    if p == 8:
        return tl.load(codes_ptr + start + k % 8, mask=mask, other=0).to(tl.int32)
    block = k % width // 32
    word: tl.constexpr = 4 // p  # sub-blocks in one
    byte = tl.load(codes_ptr + start + block // word * 4 + k % 8 // 2, mask=mask, other=0).to(tl.int32)
    return (byte >> (k % 2 * 4 + block % word * p)) & ((1 << p) - 1)


@triton.jit
def _weight(
    codes_ptr, levels_ptr, scale_ptr, n, k, N, K, group, G, low_tiles, high_first, high_tiles, BITS: tl.constexpr
):
    """levels[codes] * scale at (n, k) in float32, 0 outside of the weight."""
    mask = (n < N) & (k < K)
    if BITS == 3:
        low = _plane(codes_ptr, 0, low_tiles, n, k, mask, 2)
        codes = low | (_plane(codes_ptr, high_first, high_tiles, n, k, mask, 1) << 2)
    else:
        codes = _plane(codes_ptr, 0, low_tiles, n, k, mask, BITS)
    level = tl.load(levels_ptr + codes, mask=mask, other=0.0)
    where = ((n // 16).to(tl.int64) * G + k // group) * 16 + n % 16
    scale = tl.load(scale_ptr + where, mask=mask, other=0.0).to(tl.float32)
    return level * scale + 0.0  # never -0


@triton.jit
def lut_dequantize_kernel(
    codes_ptr, levels_ptr, scale_ptr, w_ptr, N, K, group, G, low_tiles, high_first, high_tiles,
    BITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    columns = tl.cdiv(K, BLOCK)
    n = (pid // columns * (16 * ROWS) + tl.arange(0, 16 * ROWS))[:, None]
    k = ((pid % columns).to(tl.int32) * BLOCK + tl.arange(0, BLOCK))[None, :]
    w = _weight(codes_ptr, levels_ptr, scale_ptr, n, k, N, K, group, G, low_tiles, high_first, high_tiles, BITS)
    tl.store(w_ptr + n * K + k, w, mask=(n < N) & (k < K))


@triton.jit
def lut_linear_kernel(
    x_ptr, codes_ptr, levels_ptr, scale_ptr, bias_ptr, y_ptr, M, N, K, group, G, low_tiles, high_first, high_tiles,
    BITS: tl.constexpr, BIAS: tl.constexpr, BLOCK_M: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    tiles_m = tl.cdiv(M, BLOCK_M)
    m = (pid % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M))[:, None]
    n = pid // tiles_m * (16 * ROWS) + tl.arange(0, 16 * ROWS)
    acc = tl.zeros((BLOCK_M, 16 * ROWS), dtype=tl.float32)
    for start in range(0, K, BLOCK):
        k = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + m * K + k[None, :], mask=(m < M) & (k < K)[None, :], other=0.0).to(tl.float32)
        w = _weight(
            codes_ptr, levels_ptr, scale_ptr, n[None, :], k[:, None], N, K, group, G, low_tiles, high_first, high_tiles,
            BITS,
        )  # fmt: skip
        acc = tl.dot(x, w, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    n = n[None, :]
    tl.store(y_ptr + m * N + n, acc.to(y_ptr.dtype.element_ty), mask=(m < M) & (n < N))


def _tiles(bits: int, n: int, k: int) -> tuple[int, int, int]:
    """(tiles a stripe of the first plane, first tile of the second plane, its tiles a stripe)."""
    stripes, low = plane_shape(n, k, PLANES[bits][0])
    return low, stripes * low, plane_shape(n, k, 1)[1]


def lut_dequantize(codes, levels, scale, bits, group_size, n, k, dtype):
    w = levels.new_empty(n, k)
    tile = Tile(1, 1, 128)
    grid = (triton.cdiv(n, 16 * tile.ROWS) * triton.cdiv(k, tile.BLOCK),)
    lut_dequantize_kernel[grid](
        codes, levels, scale, w, n, k, group_size, k // group_size, *_tiles(bits, n, k),
        BITS=bits, ROWS=tile.ROWS, BLOCK=tile.BLOCK, num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return w.to(dtype)


def lut_linear(x, codes, levels, scale, bias, bits, group_size, n, k):
    M, tile = x.shape[0], pick(x.shape[0])
    y = torch.empty(M, n, dtype=x.dtype, device=x.device)
    if M == 0:
        return y
    grid = (triton.cdiv(n, 16 * tile.ROWS) * triton.cdiv(M, tile.BLOCK_M),)
    lut_linear_kernel[grid](
        x, codes, levels, scale, levels if bias is None else bias.contiguous(), y, M, n, k, group_size, k // group_size,
        *_tiles(bits, n, k), BITS=bits, BIAS=bias is not None, BLOCK_M=tile.BLOCK_M, ROWS=tile.ROWS, BLOCK=tile.BLOCK,
        num_warps=tile.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return y
