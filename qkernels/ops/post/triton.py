"""POST in Triton: a program per tile of blocks x elements. The maths is explained in csrc/post/post.h."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qkernels.ops.tiles import clamp, load_parameter, partials, pick, tile

from .reference import magnitudes


@triton.jit
def _level(u, least, ZERO: tl.constexpr):
    a = clamp(tl.abs(u), 0.0, 1.0)
    p = (a.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)  # the power of two below
    up = tl.where(a >= p * 1.20703125, 1.4140625, 1.0)
    level = p * tl.where(a >= p * 1.70703125, 2.0, up)
    level = tl.where(level < least, least, level)
    if ZERO:
        level = tl.where(a < least * 0.5, 0.0, level)
    return tl.where(u == u, tl.where(u < 0.0, 0.0 - level, level), u)


@triton.jit
def post_fwd_kernel(
    w_ptr, scale_ptr, y_ptr, P, L, columns, least, ZERO: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    rows, offs, mask, _ = tile(P, L, columns, ROWS, BLOCK)
    s = load_parameter(scale_ptr, rows, P)
    u = tl.div_rn(tl.load(w_ptr + offs, mask=mask, other=0.0).to(tl.float32), s)
    tl.store(y_ptr + offs, (_level(u, least, ZERO) * s + 0.0).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def post_bwd_kernel(
    g_ptr, w_ptr, scale_ptr, dw_ptr, ds_ptr, P, L, columns, least,
    ZERO: tl.constexpr, CLIP: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, offs, mask, sums = tile(P, L, columns, ROWS, BLOCK)
    s = load_parameter(scale_ptr, rows, P)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    u = tl.div_rn(tl.load(w_ptr + offs, mask=mask, other=0.0).to(tl.float32), s)
    level = _level(u, least, ZERO)
    inside = (u >= -1.0) & (u <= 1.0)  # false for NaN
    dw = tl.where(inside if CLIP else u == u, g, 0.0)
    tl.store(dw_ptr + offs, dw.to(dw_ptr.dtype.element_ty), mask=mask)
    terms = g * tl.where(inside, level - u, level)  # outside, the level is the sign
    tl.store(ds_ptr + sums, tl.sum(tl.where(mask, terms, 0.0), axis=1), mask=rows < P)


def _least(count: int) -> float:
    return magnitudes(count, False)[0]


def post_fwd(w: Tensor, scale: Tensor, count: int, zero: bool) -> Tensor:
    y, t = torch.empty_like(w), pick(scale.numel(), w.numel())
    if w.numel():
        args = (w, scale, y, t.P, t.L, t.columns, _least(count), zero, t.ROWS, t.BLOCK)
        post_fwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return y


def post_bwd(g: Tensor, w: Tensor, scale: Tensor, count: int, zero: bool, clip: bool) -> tuple[Tensor, Tensor]:
    dw, t = torch.empty_like(w), pick(scale.numel(), w.numel())
    ds = partials(t, w)
    if w.numel():
        args = (g, w, scale, dw, ds, t.P, t.L, t.columns, _least(count), zero, clip, t.ROWS, t.BLOCK)
        post_bwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return dw, ds.sum(1)
