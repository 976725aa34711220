"""DAQ in plain PyTorch: the definition. Differentiable by construction, so it is also the gradient oracle."""

import math

import torch
from torch import Tensor

from qkernels.ops.grids import Hardened, positive
from qkernels.ops.ste import clamp, ste_replace


def daq(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    scale: Tensor,
    n: int,
    signed: bool,
    gamma: float,
    sigma: float,
    eps: float = 0.0,
) -> Tensor:
    """x: any shape; the rest: [P]. n: the largest code. Clipped elements give no gradient but to scale."""
    wide = torch.promote_types(x.dtype, torch.float32)
    low, high, s = (p.to(wide)[:, None] for p in (lower, upper, positive(scale)))  # [P, 1]
    v = x.to(wide).reshape(lower.shape[0], -1)  # [P, L]
    inside = clamp(v, low.detach(), high.detach())  # finite, and a NaN stays
    unit = (inside - low) / positive(high - low)
    q = torch.where((v < low) | (v > high), unit.detach(), unit) * n
    exact, code = unrounded(v, low, high, n), codes(v, low, high, n).to(wide)
    offset, slope = soft(exact, gamma, sigma, eps) if eps else (0.0, gain(exact, gamma, sigma))
    code = ste_replace(q * slope, code + torch.where(exact >= code, offset, -offset) if eps else code)
    y = (2 * code - n if signed else code) * (s * (1 / n))
    return (y + 0.0).to(x.dtype).reshape(x.shape)


@torch.no_grad()
def unrounded(x: Tensor, lower: Tensor, upper: Tensor, n: int) -> Tensor:
    """q in [0, n] of x [P, L]: the expression on whose roundings codes and gain depend. NaN where upper <= lower."""
    width = positive(upper - lower)
    return ((x - lower) * (torch.full_like(width, n) / width)).clamp(0, n)  # n / width would be n * (1 / width)


def codes(x: Tensor, lower: Tensor, upper: Tensor, n: int) -> Tensor:
    """0 ... n as float32 [P, L], half down; decided in float32 whatever the dtype of x."""
    q = unrounded(x.float(), lower.float(), upper.float(), n)
    return q.floor() + (q - q.floor() > 0.5)


def gain(q: Tensor, gamma: float, sigma: float) -> Tensor:
    """dy/dq of the soft assignment to the two codes around q: A coth(z / 2), z = 1 / sigma**2 + |1 - 2 (q mod 1)|."""
    z = sigma**-2 + (1 - 2 * (q - q.floor())).abs()
    return amplitude(gamma) * (1 + (-z).exp()) / -(-z).expm1()


def soft(q: Tensor, gamma: float, sigma: float, eps: float) -> tuple[Tensor, Tensor]:
    """(how far y is from q's code to the other one, dy/dq) where eps > 0 keeps the temperature from its full height."""
    d = q - q.floor()
    near = torch.minimum(d, 1 - d)
    scores = (-near).exp(), (near - 1 - sigma**-2).exp()  # of the nearer and of the other code
    gap = scores[0] - scores[1]
    temperature, least = gamma / (gap + eps), math.exp(-gamma) / (1 + math.exp(-gamma))
    other = torch.sigmoid(-temperature * gap)
    stretch = 1 / (1 - 2 * least)
    return (other - least) * stretch, temperature * other * (1 - other) * (scores[0] + scores[1]) * stretch


def amplitude(gamma: float) -> float:
    """A = gamma / (2 sinh gamma)."""
    return gamma * math.exp(-gamma) / -math.expm1(-2 * gamma)


def harden(x: Tensor, lower: Tensor, upper: Tensor, scale: Tensor, n: int, signed: bool) -> Hardened:
    flat = x.detach().reshape(lower.shape[0], -1)
    code = codes(flat, lower[:, None], upper[:, None], n).to(torch.uint8).reshape(x.shape)
    levels = torch.arange(n + 1, dtype=torch.float32, device=x.device)
    return Hardened(code, 2 * levels - n if signed else levels, scale.detach() * (1 / n))
