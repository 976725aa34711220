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
MOST = tl.constexpr(40.0)  # sigma further off than the nearest level: beyond it nothing is added
# a program: with more the kernels need more registers than tests/test_triton_aot.py allows
_FORWARD, _BACKWARD = 1024, 512


@triton.jit
def _last(low, BITWISE: tl.constexpr):
    """The largest magnitude of the level whose smallest is low."""
    return low + low - 1.0 if BITWISE else low


@triton.jit
def _next(low, BITWISE: tl.constexpr):
    """The smallest magnitude of the level above."""
    return low + low if BITWISE else low + 1.0


@triton.jit
def _steps(step_ptr, sigma_ptr, rows, P):
    """[ROWS, 1] each: step, and step / sigma; both NaN where step or sigma is not positive."""
    sigma = load_parameter(sigma_ptr, rows, P)
    s = tl.where(sigma > 0, load_parameter(step_ptr, rows, P), float("nan"))
    return s, tl.div_rn(s, sigma)


@triton.jit
def _odds(rho, distance):
    t = rho * distance
    return tl.exp(tl.where(t > MOST, MOST, t))


@triton.jit
def _code_odds(rho, off, m):
    """The odds of |x| being right of a code that it is off from, and left of it."""
    return _odds(rho, (off - 0.5) - m), _odds(rho, 0.0 - ((off + 0.5) + m))


@triton.jit
def _choose(x, s, rho, top, keep_ptr, levels, BITWISE: tl.constexpr):
    """nearest, r, m and e**-(rho m); the code that is chosen, and its gate."""
    shift = (s.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True) * 6144.0
    high = (s + shift) - shift  # 12 bits: its product with a code is exact
    reach = 0.5 + tl.div_rn(FAR, rho)
    magnitude = tl.abs(x)
    nearest = round_even(clamp(tl.div_rn(magnitude, s), 0.0, top))
    r = clamp(((magnitude - nearest * high) - nearest * (s - high)) * tl.div_rn(1.0, s), 0.0 - reach, reach)
    m = (nearest - 0.5) + r
    m = tl.where(m < 0.0, 0.0, m)
    low = 1.0
    for k in range(1, levels):
        if tl.load(keep_ptr + k - 1) > 0:
            d = tl.abs((nearest - clamp(nearest, low, _last(low, BITWISE))) + r) - 0.5
            m = tl.where(m > d, tl.where(d < 0.0, 0.0, d), m)
        low = _next(low, BITWISE)
    e0 = tl.exp(0.0 - rho * m)
    floor = e0 * (2.0 + expm1(0.0 - rho))
    code = nearest - nearest  # level 0; NaN where x is
    gate = code + 1.0
    distance = nearest + r
    right, left = _code_odds(rho, distance, m)
    total = floor + (right + left)
    low = 1.0
    for k in range(1, levels):
        keep = tl.load(keep_ptr + k - 1)
        if keep > 0:
            n = clamp(nearest, low, _last(low, BITWISE))
            off = (nearest - n) + r
            d = tl.abs(off)
            right, left = _code_odds(rho, off, m)
            sums = floor + (right + left)
            closer = (d < distance) | ((d == distance) & (n == nearest))
            better = tl.where(gate == keep, closer, keep * total > gate * sums)
            code = tl.where(better, n, code)
            gate = tl.where(better, keep, gate)
            distance = tl.where(better, d, distance)
            total = tl.where(better, sums, total)
        low = _next(low, BITWISE)
    return nearest, r, m, e0, code, gate


@triton.jit
def _run(rho, nearest, r, m, low, last, floor):
    """The odds of |x| being right and left of a run low .. last of codes, and the sum that its mass is over."""
    right = _odds(rho, ((nearest - (last + 0.5)) + r) - m)
    left = _odds(rho, (((low - 0.5) - nearest) - r) - m)
    return right, left, floor + (right + left)


@triton.jit
def _derivatives(run, inverse, floor, e0, wide, slope, center):
    """d log mass of a run: over x / sigma, plus 1, and over rho; center is that of the run, less the chosen code."""
    right, left, _ = run
    both = (4.0 * wide) * e0 + (1.0 + wide) * (right + left)
    return (floor + (left + left)) * inverse, slope * (both * inverse) - center * ((left - right) * inverse)


@triton.jit
def dropbits_fwd_kernel(
    x_ptr, step_ptr, sigma_ptr, keep_ptr, y_ptr, P, L, columns, top, levels,
    BITWISE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, offs, mask, _ = tile(P, L, columns, ROWS, BLOCK)
    s, rho = _steps(step_ptr, sigma_ptr, rows, P)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    y = _choose(x, s, rho, top, keep_ptr, levels, BITWISE)[4] * s
    tl.store(y_ptr + offs, tl.where(x < 0.0, 0.0 - y, y).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def dropbits_bwd_kernel(
    g_ptr, x_ptr, step_ptr, sigma_ptr, keep_ptr, dx_ptr, ds_ptr, dsigma_ptr, dkeep_ptr, P, L, columns, top, levels,
    BITWISE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ds, dsigma [P, columns]; dkeep [programs, levels - 1]."""
    rows, offs, mask, sums = tile(P, L, columns, ROWS, BLOCK)
    s, rho = _steps(step_ptr, sigma_ptr, rows, P)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    nearest, r, m, e0, code, gate = _choose(x, s, rho, top, keep_ptr, levels, BITWISE)

    # level 0, one run, and the code itself have the width 1
    one = 0.0 - expm1(0.0 - rho)
    wide = 1.0 - one
    steep = tl.div_rn(0.5, one)
    floor = e0 * (1.0 + wide)
    zero = _run(rho, nearest, r, m, 0.0, 0.0, floor)
    inverse = tl.div_rn(1.0, zero[2])
    D = one * inverse
    toward, slope = _derivatives(zero, inverse, floor, e0, wide, steep, 0.0 - code)
    toward = D * toward
    slope = D * slope
    low = 1.0
    for k in range(1, levels):
        keep = tl.load(keep_ptr + k - 1)
        if keep > 0:
            last = _last(low, BITWISE)
            width = last - low + 1.0
            mass = 0.0 - expm1(0.0 - width * rho) if BITWISE else one
            floor_k = e0 * (2.0 - mass)
            run = _run(rho, nearest, r, m, low, last, floor_k)
            mirror = _run(rho, nearest, r, m, 0.0 - last, 0.0 - low, floor_k)
            per_sums = tl.div_rn(1.0, run[2] * mirror[2])  # at most e**41 each
            here = per_sums * mirror[2]
            there = per_sums * run[2]
            bend = tl.div_rn(width, mass + mass)
            center = 0.5 * (low + last)
            toward_here, slope_here = _derivatives(run, here, floor_k, e0, 1.0 - mass, bend, center - code)
            toward_there, slope_there = _derivatives(mirror, there, floor_k, e0, 1.0 - mass, bend, 0.0 - center - code)
            weight = keep * mass
            toward += weight * (here * toward_here + there * toward_there)
            slope += weight * (here * slope_here + there * slope_there)
            D += weight * (here + there)
        low = _next(low, BITWISE)

    off = (nearest - code) + r  # |x| / step less the code
    right, left = _code_odds(rho, off, m)
    per_D = tl.div_rn(1.0, D)
    inverse = tl.div_rn(1.0, floor + (right + left))
    q = gate * ((one * inverse) * per_D)
    X, Y = _derivatives((right, left, D), inverse, floor, e0, wide, steep, 0.0)
    X = tl.where(tl.abs(r) < 0.5 + tl.div_rn(FAR, rho), X - toward * per_D, 0.0)
    Y = Y - slope * per_D
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    dx = tl.where(x == x, (g * code) * ((q * rho) * X), 0.0)
    tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    g = tl.where(mask, g * tl.where(x < 0.0, 0.0 - code, code), 0.0)  # times the code, with its sign
    gain = q * rho
    ds = tl.where(mask, g + g * (gain * (Y - code * X)), 0.0)
    dsigma = tl.where(mask, 0.0 - g * (gain * (rho * (off * X + Y))), 0.0)
    tl.store(ds_ptr + sums, tl.sum(ds, axis=1), mask=rows < P)
    tl.store(dsigma_ptr + sums, tl.sum(dsigma, axis=1), mask=rows < P)

    g = g * (s * q)
    dkeep_ptr += tl.program_id(0).to(tl.int64) * (levels - 1)
    low = 1.0
    for k in range(1, levels):
        keep = tl.load(keep_ptr + k - 1)
        if keep > 0:
            last = _last(low, BITWISE)
            mass = 0.0 - expm1(0.0 - (last - low + 1.0) * rho) if BITWISE else one
            floor_k = e0 * (2.0 - mass)
            _, _, here = _run(rho, nearest, r, m, low, last, floor_k)
            _, _, there = _run(rho, nearest, r, m, 0.0 - last, 0.0 - low, floor_k)
            share = (keep * mass) * (tl.div_rn(1.0, here * there) * (here + there)) * per_D
            own = tl.where((code >= low) & (code <= last), 1.0, 0.0)
            term = tl.where(mask, g * ((own - share) * tl.div_rn(1.0, keep)), 0.0)
            tl.store(dkeep_ptr + k - 1, tl.sum(term))
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
