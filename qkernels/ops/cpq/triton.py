"""CPQ in Triton: a program per tile of blocks x elements. The maths is explained in csrc/cpq/cpq.h.

The odds e**t come from tl.exp. On a GPU that is 2**(t log2(e)), off by |t| / 2 roundings and 2 more; t itself is off by
up to 3 |t|, from rho * (r - 1/2).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qkernels.ops.tiles import clamp, expm1, load_parameter, partials, pick, round_even, tile

FAR = tl.constexpr(85.0)  # sigma off the grid: beyond it dx is 0
DECAY = tl.constexpr(20.0)  # sigma off the grid, from where dx falls as e**-t to float32 precision
WINDOW = tl.constexpr(5.5)  # sigma from x, from where edges are summed in powers of their odds
LEAST = tl.constexpr(1e-18)  # rho is kept from here, or for the mean of a truncated grid from LEAST_OF_MEAN, to MOST
LEAST_OF_MEAN = tl.constexpr(1e-4)
MOST = tl.constexpr(1e6)
_ELEMENTS = 512  # a program of the backward: with 1024 it needs more registers than tests/test_triton_aot.py allows


@triton.jit
def _steps(step_ptr, sigma_ptr, rows, P):
    """[ROWS, 1] each: step and sigma, both NaN where either is not positive."""
    step = load_parameter(step_ptr, rows, P)
    sigma = load_parameter(sigma_ptr, rows, P)
    return tl.where(sigma > 0, step, float("nan")), tl.where(step > 0, sigma, float("nan"))


@triton.jit
def _argmax_gradient(k, r, rho, lo, hi, TRUNCATE: tl.constexpr):
    """w, X and Y."""
    own = 0.0 - expm1(0.0 - rho)
    push = tl.div_rn(1.0, expm1(rho))
    up = tl.exp(rho * (r - 0.5))
    down = tl.exp(0.0 - rho * (r + 0.5))
    inverse = tl.div_rn(1.0, (1.0 + up) * (1.0 + down))
    if not TRUNCATE:
        w = k * (own * inverse)
        X = (down - up) * inverse
        Y = 0.5 * ((up * (1.0 + down) + down * (1.0 + up)) * inverse) + push
    else:
        K = hi - lo + 1.0
        pull = push - tl.div_rn(K, expm1(K * rho))
        gain = tl.div_rn(own, 0.0 - expm1(0.0 - K * rho))
        after = hi - k
        before = k - lo
        top = tl.exp(rho * ((r - 0.5) - after))
        bottom = tl.exp(0.0 - rho * ((r + 0.5) + before))
        ends = (1.0 + top) * (1.0 + bottom)
        inverse_ends = tl.div_rn(1.0, ends)
        per_top = (1.0 + bottom) * inverse_ends
        per_bottom = (1.0 + top) * inverse_ends
        above = ((up - top) * ((1.0 + down) * inverse)) * per_top
        below = ((down - bottom) * ((1.0 + up) * inverse)) * per_bottom
        w = k * (gain * (inverse * ends))
        X = below - above
        Y = (0.5 * (above + below) - after * (top * per_top) - before * (bottom * per_bottom)) + pull
    return w, X, Y


@triton.jit
def _coefficients(q, one):
    """Of z, z**2 and z**3 in the sums over edges with odds z q**j of f, and those of j f; one = 1 - q."""
    two = one * (1.0 + q)  # 1 - q**2
    three = one * (1.0 + q + q * q)
    a = tl.div_rn(1.0, one)
    b = tl.div_rn(-2.0, two)
    c = tl.div_rn(3.0, three)
    return (a, b, c), (tl.div_rn(a * q, one), tl.div_rn(b * (q * q), two), tl.div_rn(c * (q * q * q), three))


@triton.jit
def _cubic(z, c):
    return z * (c[0] + z * (c[1] + z * c[2]))


@triton.jit
def _full_gradient(k, r, rho, lo, hi, TRUNCATE: tl.constexpr):
    """X and Y. A block has as many edges summed one by one as its own rho asks for, whatever shares its program."""
    K = hi - lo + 1.0
    window = tl.div_rn(DECAY if TRUNCATE else WINDOW, rho)
    last = tl.where(window < K - 1.0, window, tl.where(rho == rho, K - 2.0, -1.0)).to(tl.int32)  # tl.floor flushes
    edges = (last + 1).to(tl.float32)  # [ROWS, 1]
    q = tl.exp(0.0 - rho)
    after = hi - k
    before = k - lo
    near_after = tl.where(after < edges, after, edges)
    near_before = tl.where(before < edges, before, edges)
    up = tl.exp(rho * (r - 0.5))
    down = tl.exp(0.0 - rho * (r + 0.5))
    top = tl.exp(rho * ((r - 0.5) - after))
    bottom = tl.exp(0.0 - rho * ((r + 0.5) + before))
    inverse = tl.div_rn(1.0, (1.0 + top) * (1.0 + bottom))
    per_top = (1.0 + bottom) * inverse
    per_bottom = (1.0 + top) * inverse
    s_top = top * per_top
    s_bottom = bottom * per_bottom
    f_top = s_top * per_top
    f_bottom = s_bottom * per_bottom
    right = tl.where(near_after > 0, up, 0.0)
    left = tl.where(near_before > 0, down, 0.0)
    total = tl.zeros_like(r)
    weighted = tl.zeros_like(r)
    mean = tl.zeros_like(r)
    for j in range(tl.max(last) + 1):
        i = tl.div_rn(1.0, (1.0 + right) * (1.0 + left))
        per_right = (1.0 + left) * i
        per_left = (1.0 + right) * i
        s_right = right * per_right
        s_left = left * per_left
        f_right = s_right * per_right
        f_left = s_left * per_left
        weighted += (j + 0.5) * (f_right - f_left)
        if TRUNCATE:
            r_top = tl.where(near_after > j, s_right - s_top, 0.0)
            l_bottom = tl.where(near_before > j, s_left - s_bottom, 0.0)
            total += r_top * (per_bottom - s_right) + l_bottom * (per_top - s_left)
            mean += r_top - l_bottom
        else:
            total += f_right + f_left
        right = tl.where(near_after > j + 1, right * q, 0.0)
        left = tl.where(near_before > j + 1, left * q, 0.0)
    if TRUNCATE:
        per_Z = tl.div_rn(tl.div_rn(1.0, 0.0 - expm1(0.0 - K * rho)), per_top * per_bottom)
        e = mean * per_Z
        ends = ((after - e) * (after + 0.5)) * f_top - ((before + e) * (before + 0.5)) * f_bottom
        X = total * per_Z
        Y = (ends - weighted) * per_Z
    else:
        sum0, sum1 = _coefficients(q, 0.0 - expm1(0.0 - rho))
        right = tl.where(after > edges, tl.exp(rho * ((r - 0.5) - edges)), 0.0)
        left = tl.where(before > edges, tl.exp(0.0 - rho * ((r + 0.5) + edges)), 0.0)
        end_right = tl.where(after > edges, top, 0.0)
        end_left = tl.where(before > edges, bottom, 0.0)
        r0, re = _cubic(right, sum0), _cubic(end_right, sum0)
        l0, le = _cubic(left, sum0), _cubic(end_left, sum0)
        total += (r0 - re) + (l0 - le)
        start = edges + 0.5
        from_right = (start * r0 + _cubic(right, sum1)) - ((after + 0.5) * re + _cubic(end_right, sum1))
        from_left = (start * l0 + _cubic(left, sum1)) - ((before + 0.5) * le + _cubic(end_left, sum1))
        weighted += from_right - from_left
        X = (total - hi * f_top) + lo * f_bottom
        Y = (hi * ((after + 0.5) * f_top) + lo * ((before + 0.5) * f_bottom)) - weighted
    return X, Y


@triton.jit
def cpq_fwd_kernel(
    x_ptr, step_ptr, sigma_ptr, y_ptr, P, L, columns, qmin, qmax, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    rows, offs, mask, _ = tile(P, L, columns, ROWS, BLOCK)
    s, _ = _steps(step_ptr, sigma_ptr, rows, P)
    v = tl.div_rn(tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32), s)
    tl.store(y_ptr + offs, (round_even(clamp(v, qmin, qmax)) * s).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def cpq_bwd_kernel(
    g_ptr, x_ptr, step_ptr, sigma_ptr, dx_ptr, ds_ptr, dsigma_ptr, P, L, columns, qmin, qmax,
    FULL: tl.constexpr, TRUNCATE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows, offs, mask, sums = tile(P, L, columns, ROWS, BLOCK)
    s, sigma = _steps(step_ptr, sigma_ptr, rows, P)
    high = (s.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)  # 12 bits: times a code it is exact
    rho = clamp(tl.div_rn(s, sigma), LEAST_OF_MEAN if FULL and TRUNCATE else LEAST, MOST)
    reach = 0.5 + tl.div_rn(FAR, rho)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    k = round_even(clamp(tl.div_rn(x, s), qmin, qmax))
    r = clamp(tl.div_rn((x - k * high) - k * (s - high), s), 0.0 - reach, reach)
    distance = tl.abs(r)
    if not FULL:
        w, X, Y = _argmax_gradient(k, r, rho, qmin, qmax, TRUNCATE)
        w = w * rho
    elif not TRUNCATE:
        X, Y = _full_gradient(k, r, rho, qmin, qmax, TRUNCATE)
        w = rho
    else:
        near = 0.5 + tl.div_rn(DECAY, rho)
        X, Y = _full_gradient(k, clamp(r, 0.0 - near, near), rho, qmin, qmax, TRUNCATE)
        X = X * tl.exp(clamp(rho * (near - distance), -100.0, 0.0))
        w = rho
    g = tl.load(g_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    scale = g * w
    X = tl.where(distance < reach, X, 0.0)
    dx = tl.where(r == r, scale * X, 0.0)
    tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    ds = g * k + scale * (Y - k * X)
    dsigma = 0.0 - scale * (rho * (r * X + Y))
    tl.store(ds_ptr + sums, tl.sum(tl.where(mask, ds, 0.0), axis=1), mask=rows < P)
    tl.store(dsigma_ptr + sums, tl.sum(tl.where(mask, dsigma, 0.0), axis=1), mask=rows < P)


def cpq_fwd(x: Tensor, step: Tensor, sigma: Tensor, qmin: int, qmax: int) -> Tensor:
    y, t = torch.empty_like(x), pick(step.numel(), x.numel())
    if x.numel():
        args = (x, step, sigma, y, t.P, t.L, t.columns, float(qmin), float(qmax), t.ROWS, t.BLOCK)
        cpq_fwd_kernel[t.grid](*args, num_warps=t.num_warps, enable_fp_fusion=False)
    return y


def cpq_bwd(
    g: Tensor, x: Tensor, step: Tensor, sigma: Tensor, qmin: int, qmax: int, full: bool, truncate: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx, t = torch.empty_like(x), pick(step.numel(), x.numel(), elements=_ELEMENTS)
    ds, dsigma = partials(t, x), partials(t, x)
    if x.numel():
        args = (g, x, step, sigma, dx, ds, dsigma, t.P, t.L, t.columns, float(qmin), float(qmax), full, truncate)
        cpq_bwd_kernel[t.grid](*args, t.ROWS, t.BLOCK, num_warps=t.num_warps, enable_fp_fusion=False)
    return dx, ds.sum(1), dsigma.sum(1)
