"""DAQ in Triton: a program per tile of blocks x elements. The maths is explained in csrc/daq/daq.h."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qkernels.ops.tiles import clamp, load_parameter, partials, pick, round_even, tile


@triton.jit
def _bounds(lower_ptr, upper_ptr, rows, P):
    """[ROWS, 1] each: lower, upper and their distance, NaN where it is not positive."""
    lower = tl.load(lower_ptr + rows, mask=rows < P, other=0.0).to(tl.float32)[:, None]
    upper = tl.load(upper_ptr + rows, mask=rows < P, other=1.0).to(tl.float32)[:, None]
    width = upper - lower
    return lower, upper, tl.where(width > 0, width, float("nan"))


@triton.jit
def _code(q):
    """The code of q, half down, and how far q is from it."""
    even = round_even(q)
    above = q - even
    return tl.where(above <= -0.5, even - 1.0, even), tl.abs(above)


@triton.jit
def daq_fwd_kernel(
    x_ptr, lower_ptr, upper_ptr, scale_ptr, y_ptr, P, L, columns, n, inverse, twice, offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, offs, mask, _ = tile(P, L, columns, ROWS, BLOCK)
    lower, upper, width = _bounds(lower_ptr, upper_ptr, rows, P)
    step = load_parameter(scale_ptr, rows, P) * inverse
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    code, _ = _code(clamp((x - lower) * tl.div_rn(n, width), 0.0, n))
    tl.store(y_ptr + offs, ((code * twice - offset) * step + 0.0).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def daq_bwd_kernel(
    g_ptr, x_ptr, lower_ptr, upper_ptr, scale_ptr, dx_ptr, dlower_ptr, dupper_ptr, dscale_ptr, P, L, columns,
    n, inverse, twice, offset, amplitude, base, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, offs, mask, sums = tile(P, L, columns, ROWS, BLOCK)
    lower, upper, width = _bounds(lower_ptr, upper_ptr, rows, P)
    slope = tl.div_rn(load_parameter(scale_ptr, rows, P) * twice * amplitude, width)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    q = clamp((x - lower) * tl.div_rn(n, width), 0.0, n)
    unit = q * inverse
    code, distance = _code(q)
    v = 1.0 - (distance + distance)
    w = v * v
    t = 3.34668101369e-5 * w + -4.13953713838e-4
    t = t * w + 4.16399353715e-3
    t = t * w + -4.16663367426e-2
    t = (t * w + 4.99999993436e-1) * v
    h = g * (slope * tl.div_rn(1.0 + base * t, base + t))
    dx = tl.where((x >= lower) & (x <= upper), h, 0.0)  # 0 where x is NaN; unit is NaN there
    tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    keep = rows < P
    tl.store(dlower_ptr + sums, tl.sum(tl.where(mask, dx * (unit - 1.0), 0.0), axis=1), mask=keep)
    tl.store(dupper_ptr + sums, tl.sum(tl.where(mask, 0.0 - dx * unit, 0.0), axis=1), mask=keep)
    scale_terms = g * ((code * twice - offset) * inverse)
    tl.store(dscale_ptr + sums, tl.sum(tl.where(mask, scale_terms, 0.0), axis=1), mask=keep)


def _levels(n: int, signed: bool) -> tuple[float, float, float, float]:
    """(N, 1 / N, twice, offset): a level is twice * code - offset."""
    return float(n), 1 / n, 2.0 if signed else 1.0, float(n) if signed else 0.0


def daq_fwd(x: Tensor, lower: Tensor, upper: Tensor, scale: Tensor, n: int, signed: bool) -> Tensor:
    y, t = torch.empty_like(x), pick(lower.numel(), x.numel())
    if x.numel():
        args = (x, lower, upper, scale, y, t.P, t.L, t.columns, *_levels(n, signed), t.ROWS, t.BLOCK)
        daq_fwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return y


def daq_bwd(
    g: Tensor, x: Tensor, lower: Tensor, upper: Tensor, scale: Tensor,
    n: int, signed: bool, amplitude: float, base: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dx, t = torch.empty_like(x), pick(lower.numel(), x.numel(), 1024)
    grads = [partials(t, x) for _ in range(3)]
    if x.numel():
        args = (g, x, lower, upper, scale, dx, *grads, t.P, t.L, t.columns, *_levels(n, signed), amplitude, base)
        daq_bwd_kernel[t.grid](*args, t.ROWS, t.BLOCK, num_warps=t.num_warps, enable_fp_fusion=False)
    return dx, *(d.sum(1) for d in grads)
