"""Soft assignment in Triton: a program per tile of blocks x elements. The maths is explained in soft_assign.h."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qkernels.ops.tiles import clamp, load_parameter, pick, relative_weight, tile

LOG2E = tl.constexpr(1.44269504088896341)
_ELEMENTS = 1024  # a program: with 2048 the kernels need more registers than tests/test_triton_aot.py allows


@triton.jit
def _nearest(x, levels, inside, poison, K):
    """[ROWS, BLOCK]: the nearest level; NaN where x is, or its block's poison."""
    q = tl.load(levels, mask=inside, other=0.0)[:, None] + poison
    m = q + (x - x)
    for k in range(1, K):
        above = tl.load(levels + k, mask=inside, other=0.0)[:, None]
        m = tl.where((q + above) * 0.5 < x, above, m)
        q = above + poison
    return m


@triton.jit
def _exponent(x, q, m, s):
    e = s * ((q - m) * ((x - q) + (x - m)))
    return tl.where(e < -64.0, -64.0, e)


@triton.jit
def _sums(x, levels, inside, m, s, K):
    """Of the weights e, and of e (q - m)."""
    total = tl.zeros_like(x)
    first = tl.zeros_like(x)
    for k in range(K):
        q = tl.load(levels + k, mask=inside, other=0.0)[:, None]
        e = relative_weight(_exponent(x, q, m, s))
        total += e
        first += e * (q - m)
    return total, first


@triton.jit
def soft_assign_fwd_kernel(
    x_ptr, levels_ptr, temperature_ptr, y_ptr, P, L, columns, K,
    HARD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, offs, mask, _ = tile(P, L, columns, ROWS, BLOCK)
    t = load_parameter(temperature_ptr, rows, P)
    levels, inside = levels_ptr + rows * K, rows < P
    x = clamp(tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32), -1e30, 1e30)
    m = _nearest(x, levels, inside, t - t, K)
    if HARD:
        y = m + 0.0
    else:
        total, first = _sums(x, levels, inside, m, t * LOG2E, K)
        y = m + tl.div_rn(first, total)
    tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def soft_assign_bwd_kernel(
    g_ptr, x_ptr, levels_ptr, temperature_ptr, dx_ptr, ds_ptr, P, L, columns, K, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """ds [P, columns, K + 1]: of the levels and, last, of the temperature."""
    rows, offs, mask, sums = tile(P, L, columns, ROWS, BLOCK)
    t = load_parameter(temperature_ptr, rows, P)
    s = t * LOG2E
    levels, inside, sums = levels_ptr + rows * K, rows < P, ds_ptr + sums * (K + 1)
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    x = clamp(tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32), -1e30, 1e30)
    m = _nearest(x, levels, inside, t - t, K)
    total, first = _sums(x, levels, inside, m, s, K)
    shift = tl.div_rn(first, total)
    share = tl.div_rn(g, total)
    dx = tl.zeros_like(x)
    dt = tl.zeros_like(x)
    for k in range(K):
        q = tl.load(levels + k, mask=inside, other=0.0)[:, None]
        v = _exponent(x, q, m, s)
        a = relative_weight(v) * share
        c = (q - m) - shift
        ac = a * c
        b = ac * (t + t)
        dx += b * c
        dt += ac * v
        tl.store(sums + k, tl.sum(tl.where(mask, a + b * (x - q), 0.0), axis=1), mask=inside)
    dx = tl.where(shift == shift, dx, 0.0)
    tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(sums + K, tl.sum(tl.div_rn(tl.where(mask, dt, 0.0), s), axis=1), mask=inside)


def soft_assign_fwd(x: Tensor, levels: Tensor, temperature: Tensor, hard: bool) -> Tensor:
    P = temperature.numel()
    y, t = torch.empty_like(x), pick(P, x.numel(), elements=_ELEMENTS)
    if x.numel():
        args = (x, levels, temperature, y, t.P, t.L, t.columns, levels.numel() // P, hard, t.ROWS, t.BLOCK)
        soft_assign_fwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return y


def soft_assign_bwd(g: Tensor, x: Tensor, levels: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    P = temperature.numel()
    K, t = levels.numel() // P, pick(P, x.numel(), elements=_ELEMENTS)
    dx, ds = torch.empty_like(x), levels.new_zeros(P, max(t.columns, 1), K + 1)
    if x.numel():
        args = (g, x, levels, temperature, dx, ds, t.P, t.L, t.columns, K, t.ROWS, t.BLOCK)
        soft_assign_bwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    ds = ds.sum(1)  # [P, K + 1]
    return dx, ds[:, :K].reshape(levels.shape).clone(), ds[:, K].clone()
