"""DropBits in Triton: a program per tile of blocks x elements. The maths is explained in csrc/dropbits/dropbits.h.

Every odds is an exponential of its own (tl.exp; see ops/cpq/triton.py), and the masses of the levels are computed twice
in the backward: their number is known when it runs, and a program has no memory for them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qkernels.ops.tiles import clamp, expm1, load_parameter, partials, pick, round_even, tile

FAR = tl.constexpr(85.0)  # sigma off the grid: beyond it dx is 0
LEAST = tl.constexpr(1e-18)  # rho is kept from here
MOST_RHO = tl.constexpr(1e6)  # to here
MOST = tl.constexpr(40.0)  # sigma further off than the nearest level: beyond it nothing is added
# a program: with more the kernels need more registers than tests/test_triton_aot.py allows
_FORWARD, _BACKWARD = 1024, 256


@triton.jit
def _last(low, BITWISE: tl.constexpr):
    """The largest magnitude of the level whose smallest is low."""
    return low + low - 1.0 if BITWISE else low


@triton.jit
def _next(low, BITWISE: tl.constexpr):
    """The smallest magnitude of the level above."""
    return low + low if BITWISE else low + 1.0


@triton.jit
def _wider(mass, BITWISE: tl.constexpr):
    """1 - e**-(w rho), of the runs of a level from that of the level below, half as wide."""
    return mass * (2.0 - mass) if BITWISE else mass


@triton.jit
def _steps(step_ptr, sigma_ptr, rows, P, keep_ptr, levels, x):
    """As large as x: step, and step / sigma; both NaN where step or sigma is not positive, or a gate is not finite."""
    sigma = load_parameter(sigma_ptr, rows, P)
    s = tl.where(sigma > 0, load_parameter(step_ptr, rows, P), float("nan"))
    for k in range(1, levels):
        s = tl.where(tl.abs(tl.load(keep_ptr + k - 1)) < float("inf"), s, float("nan"))
    return tl.broadcast_to(s, x.shape), tl.broadcast_to(clamp(tl.div_rn(s, sigma), LEAST, MOST_RHO), x.shape)


@triton.jit
def _at_most(v, most):
    return tl.minimum(v, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _at_least(v, least):
    return tl.maximum(v, least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _odds(rho, distance):
    return tl.exp(_at_most(rho * distance, MOST))


@triton.jit
def _choose(x, s, rho, top, keep_ptr, levels, BITWISE: tl.constexpr):
    """nearest, r, m, e**-(rho m) and 1 - e**-rho; the code that is chosen, and its gate."""
    high = (s.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)  # 12 bits: times a code it is exact
    reach = 0.5 + tl.div_rn(FAR, rho)
    magnitude = tl.abs(x)
    nearest = round_even(clamp(tl.div_rn(magnitude, s), 0.0, top))
    r = clamp(tl.div_rn((magnitude - nearest * high) - nearest * (s - high), s), 0.0 - reach, reach)
    d = (nearest - 0.5) + r
    low = 1.0
    for k in range(1, levels):
        if tl.load(keep_ptr + k - 1) > 0:
            off = (nearest - _at_most(_at_least(nearest, low), _last(low, BITWISE))) + r
            d = _at_most(tl.abs(off) - 0.5, d)
        low = _next(low, BITWISE)
    m = _at_least(d, 0.0)
    e0 = tl.exp(0.0 - rho * m)
    one = 0.0 - expm1(0.0 - rho)
    floor = e0 * (2.0 - one)
    near = (r - m) - 0.5
    away = (r + m) + 0.5
    code = nearest - nearest  # level 0; NaN where x is
    gate = code + 1.0
    distance = nearest + r
    total = floor + (_odds(rho, nearest + near) + _odds(rho, 0.0 - (nearest + away)))
    low = 1.0
    for k in range(1, levels):
        keep = tl.load(keep_ptr + k - 1)
        if keep > 0:
            n = _at_most(_at_least(nearest, low), _last(low, BITWISE))
            off = nearest - n
            d = tl.abs(off + r)
            sums = floor + (_odds(rho, off + near) + _odds(rho, 0.0 - (off + away)))
            closer = (d < distance) | ((d == distance) & (n == nearest))
            better = tl.where(gate == keep, closer, keep * total > gate * sums)
            code = tl.where(better, n, code)
            gate = tl.where(better, keep, gate)
            distance = tl.where(better, d, distance)
            total = tl.where(better, sums, total)
        low = _next(low, BITWISE)
    return nearest, r, m, e0, one, code, gate


@triton.jit
def _run(rho, nearest, near, away, low, last, floor):
    """The odds of |x| being right and left of a run low .. last of codes, and the sum that its mass is over."""
    right = _odds(rho, (nearest - last) + near)
    left = _odds(rho, (low - nearest) - away)
    return right, left, floor + (right + left)


@triton.jit
def _derivatives(right, left, inverse, floor, thin, wide, bend, center):
    """d log mass of a run: over x / sigma, plus 1, and over rho. thin is 4 e**-(rho m) wide, wide 1 + e**-(w rho)."""
    slope = bend * (thin + wide * (right + left)) - center * (left - right)
    return (floor + (left + left)) * inverse, slope * inverse


@triton.jit
def dropbits_fwd_kernel(
    x_ptr, step_ptr, sigma_ptr, keep_ptr, y_ptr, P, L, columns, top, levels,
    BITWISE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, offs, mask, _ = tile(P, L, columns, ROWS, BLOCK)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    s, rho = _steps(step_ptr, sigma_ptr, rows, P, keep_ptr, levels, x)
    y = _choose(x, s, rho, top, keep_ptr, levels, BITWISE)[5] * s
    tl.store(y_ptr + offs, tl.where(x < 0.0, 0.0 - y, y).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def dropbits_bwd_kernel(
    g_ptr, x_ptr, step_ptr, sigma_ptr, keep_ptr, dx_ptr, ds_ptr, dsigma_ptr, dkeep_ptr, P, L, columns, top, levels,
    BITWISE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ds, dsigma [P, columns]; dkeep [programs, levels - 1]."""
    rows, offs, mask, sums = tile(P, L, columns, ROWS, BLOCK)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    s, rho = _steps(step_ptr, sigma_ptr, rows, P, keep_ptr, levels, x)
    nearest, r, m, e0, one, code, gate = _choose(x, s, rho, top, keep_ptr, levels, BITWISE)
    near = (r - m) - 0.5
    away = (r + m) + 0.5

    # level 0 is one run; it, level 1 and the code itself have the width 1
    wide = 2.0 - one
    bend = tl.div_rn(0.5, one)
    floor = e0 * wide
    thin = (4.0 * e0) * (1.0 - one)
    right, left, D = _run(rho, nearest, near, away, 0.0, 0.0, floor)
    inverse = tl.div_rn(1.0, D)
    toward, slope = _derivatives(right, left, inverse, floor, thin, wide, bend, 0.0 - code)
    D = one * inverse
    toward = D * toward
    slope = D * slope
    mass = one
    low = 1.0
    for k in range(1, levels):
        keep = tl.load(keep_ptr + k - 1)
        if keep > 0:
            last = _last(low, BITWISE)
            wide_k = 2.0 - mass
            bend_k = tl.div_rn(0.5 * (last - low + 1.0), mass)
            floor_k = e0 * wide_k
            thin_k = (4.0 * e0) * (1.0 - mass)
            right, left, here = _run(rho, nearest, near, away, low, last, floor_k)
            right_m, left_m, there = _run(rho, nearest, near, away, 0.0 - last, 0.0 - low, floor_k)
            per_sums = tl.div_rn(1.0, here * there)  # at most e**41 each
            inverse = per_sums * there
            inverse_m = per_sums * here
            center = 0.5 * (low + last)
            a, b = _derivatives(right, left, inverse, floor_k, thin_k, wide_k, bend_k, center - code)
            a_m, b_m = _derivatives(right_m, left_m, inverse_m, floor_k, thin_k, wide_k, bend_k, 0.0 - center - code)
            weight = keep * mass
            toward += weight * (inverse * a + inverse_m * a_m)
            slope += weight * (inverse * b + inverse_m * b_m)
            D += weight * (inverse + inverse_m)
        mass = _wider(mass, BITWISE)
        low = _next(low, BITWISE)

    per_D = tl.div_rn(1.0, D)
    off = nearest - code
    right, left, here = _run(rho, off, near, away, 0.0, 0.0, floor)
    inverse = tl.div_rn(1.0, here)
    gain = gate * ((one * inverse) * per_D)  # q
    X, Y = _derivatives(right, left, inverse, floor, thin, wide, bend, 0.0)
    X = tl.where(tl.abs(r) < 0.5 + tl.div_rn(FAR, rho), X - toward * per_D, 0.0)
    Y = Y - slope * per_D
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    dx = tl.where(x == x, (g * code) * ((gain * rho) * X), 0.0)
    tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    g = tl.where(mask, g * tl.where(x < 0.0, 0.0 - code, code), 0.0)  # times the code, with its sign
    share = g * (s * gain)
    gain = gain * rho
    ds = tl.where(mask, g + g * (gain * (Y - code * X)), 0.0)
    dsigma = tl.where(mask, 0.0 - g * (gain * (rho * ((off + r) * X + Y))), 0.0)
    tl.store(ds_ptr + sums, tl.sum(ds, axis=1), mask=rows < P)
    tl.store(dsigma_ptr + sums, tl.sum(dsigma, axis=1), mask=rows < P)

    dkeep_ptr += tl.program_id(0).to(tl.int64) * (levels - 1)
    mass = one
    low = 1.0
    for k in range(1, levels):
        keep = tl.load(keep_ptr + k - 1)
        if keep > 0:
            last = _last(low, BITWISE)
            floor_k = e0 * (2.0 - mass)
            _, _, here = _run(rho, nearest, near, away, low, last, floor_k)
            _, _, there = _run(rho, nearest, near, away, 0.0 - last, 0.0 - low, floor_k)
            all_k = (mass * tl.div_rn(here + there, here * there)) * per_D
            own = tl.where((code >= low) & (code <= last), tl.div_rn(1.0, keep), 0.0)
            tl.store(dkeep_ptr + k - 1, tl.sum(tl.where(mask, share * (own - all_k), 0.0)))
        mass = _wider(mass, BITWISE)
        low = _next(low, BITWISE)


def dropbits_fwd(x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int) -> Tensor:
    y, t = torch.empty_like(x), pick(step.numel(), x.numel(), elements=_FORWARD)
    if x.numel():
        args = (x, step, sigma, keep, y, t.P, t.L, t.columns, *_grid(keep, bits), t.ROWS, t.BLOCK)
        dropbits_fwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return y


def dropbits_bwd(
    g: Tensor, x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, t = torch.empty_like(x), pick(step.numel(), x.numel(), elements=_BACKWARD)
    ds, dsigma, dkeep = partials(t, x), partials(t, x), keep.new_zeros(max(t.grid[0], 1), keep.numel())
    if x.numel():
        args = (g, x, step, sigma, keep, dx, ds, dsigma, dkeep, t.P, t.L, t.columns, *_grid(keep, bits))
        dropbits_bwd_kernel[t.grid](*args, t.ROWS, t.BLOCK, num_warps=t.num_warps, enable_fp_fusion=False)
    return dx, ds.sum(1), dsigma.sum(1), dkeep.sum(0)


def _grid(keep: Tensor, bits: int) -> tuple[float, int, bool]:
    """The largest code, the number of levels with that of 0, and how gates are shared."""
    return float((1 << bits - 1) - 1), keep.numel() + 1, keep.numel() == bits - 1
