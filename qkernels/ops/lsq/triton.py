"""LSQ in Triton: a program per tile of blocks x elements; the step gradient is one partial sum per block and tile."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qkernels.ops.tiles import clamp, load_parameter, partials, pick, round_even, tile


@triton.jit
def lsq_fwd_kernel(x_ptr, step_ptr, y_ptr, P, L, columns, qmin, qmax, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows, offs, mask, _ = tile(P, L, columns, ROWS, BLOCK)
    s = load_parameter(step_ptr, rows, P)
    v = tl.div_rn(tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32), s)
    q = round_even(clamp(v, qmin, qmax))
    tl.store(y_ptr + offs, (q * s).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def lsq_bwd_kernel(
    g_ptr, x_ptr, step_ptr, dx_ptr, ds_ptr, P, L, columns, qmin, qmax, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    rows, offs, mask, sums = tile(P, L, columns, ROWS, BLOCK)
    s = load_parameter(step_ptr, rows, P)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    v = tl.div_rn(tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32), s)
    inside = (v >= qmin) & (v <= qmax)  # false for NaN: its dx is 0, its term NaN
    c = clamp(v, qmin, qmax)
    tl.store(dx_ptr + offs, tl.where(inside, g, 0.0).to(dx_ptr.dtype.element_ty), mask=mask)
    terms = g * tl.where(inside, round_even(c) - v, c)
    tl.store(ds_ptr + sums, tl.sum(tl.where(mask, terms, 0.0), axis=1), mask=rows < P)


def lsq_fwd(x: Tensor, step: Tensor, qmin: int, qmax: int) -> Tensor:
    y, t = torch.empty_like(x), pick(step.numel(), x.numel())
    if x.numel():
        args = (x, step, y, t.P, t.L, t.columns, float(qmin), float(qmax), t.ROWS, t.BLOCK)
        lsq_fwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return y


def lsq_bwd(g: Tensor, x: Tensor, step: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    dx, t = torch.empty_like(x), pick(step.numel(), x.numel())
    ds = partials(t, x)
    if x.numel():
        args = (g, x, step, dx, ds, t.P, t.L, t.columns, float(qmin), float(qmax), t.ROWS, t.BLOCK)
        lsq_bwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return dx, ds.sum(1)
