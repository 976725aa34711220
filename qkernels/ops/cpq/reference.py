"""CPQ in plain PyTorch: the definition, with every category probability. Its autograd is the gradient oracle."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from qkernels.ops.grids import Hardened, positive

_FAR = 1e4  # sigma: further off the grid every probability's gradient is 0, in float64 too


def cpq(x: Tensor, step: Tensor, sigma: Tensor, qmin: int, qmax: int, full: bool = False, truncate: bool = False):
    """x: any shape; step, sigma: [P]. The code is the one with the largest probability, decided in float32.

    full: every probability has a gradient, else the largest. truncate: they are divided by the mass of the grid.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    step, sigma = torch.where(sigma > 0, positive(step), torch.nan), positive(sigma)
    k = _round(x, step, qmin, qmax)  # [P, L]
    s, sigma = step.to(wide)[:, None], sigma.to(wide)[:, None]  # [P, 1]
    far = (_FAR * sigma).detach()
    n = torch.arange(qmin, qmax + 1, dtype=wide, device=x.device)  # [K]
    v = x.to(wide).reshape(k.shape)
    v = torch.maximum(torch.minimum(v, (n[-1] * s).detach() + far), (n[0] * s).detach() - far)

    def log_mass(low: Tensor, high: Tensor) -> Tensor:
        """log(S(high) - S(low)) for edges low < high in codes; it is log(S(high) S(-low) (1 - e**(low - high)))."""
        a, b = (s[..., None] * edge - v[..., None] for edge in (low, high))
        width = (s * (high - low)[:1] / sigma)[..., None]
        return logsigmoid(b / sigma[..., None]) + logsigmoid(-a / sigma[..., None]) + torch.log(-torch.expm1(-width))

    log_p = log_mass(n - 0.5, n + 0.5)  # [P, L, K]
    if truncate:
        log_p = log_p - log_mass(n[:1] - 0.5, n[-1:] + 0.5)
    if full:
        mean = (log_p.exp() * n).sum(-1)
    else:
        index = (k.detach().nan_to_num() - qmin).long()[..., None]
        mean = k * log_p.gather(-1, index)[..., 0].exp()
    soft = s.detach() * mean  # its value is dropped, its gradient kept
    return (k.to(wide) * s + (soft - soft.detach()) + 0.0).to(x.dtype).reshape(x.shape)


def harden(x: Tensor, step: Tensor, sigma: Tensor, qmin: int, qmax: int) -> Hardened:
    step = torch.where(sigma.detach() > 0, positive(step.detach()), torch.nan)
    codes = (_round(x.detach(), step, qmin, qmax) - qmin).to(torch.uint8).reshape(x.shape)
    return Hardened(codes, torch.arange(qmin, qmax + 1, dtype=torch.float32, device=x.device), step)


def _round(x: Tensor, step: Tensor, qmin: int, qmax: int) -> Tensor:
    """The nearest code, half to even, [P, L] float32. Category probabilities fall with the distance from x."""
    v = x.detach().to(torch.float32).reshape(step.shape[0], -1) / step.detach().to(torch.float32)[:, None]
    return v.clamp(qmin, qmax).round()
