"""Soft assignment in plain PyTorch: the definition, with an N x K tensor. Differentiable by construction."""

import torch
from torch import Tensor

from qkernels.ops.grids import Hardened, positive
from qkernels.ops.ste import ste_replace


def _nearest(x: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest level, decided in float32: x [P, L], levels [P, K]. Half way goes to the lower level."""
    q = levels.detach().to(torch.float32)
    middle = ((q[:, :-1] + q[:, 1:]) * 0.5).contiguous()
    return torch.searchsorted(middle, x.detach().to(torch.float32).contiguous())


def soft_assign(x: Tensor, levels: Tensor, temperature: Tensor, hard: bool = False) -> Tensor:
    """x: any shape; levels: [P, K]; temperature: [P]. sum_k softmax_k(-t (x - q_k)**2) q_k.

    Computed in float32, or in float64 where x is. The exponents are taken beside the nearest level, which a softmax
    does not see: then they do not overflow, and x as far as 1e30 (where it is cut) is nearest to one level.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    q, t = levels.to(wide), positive(temperature.to(wide))[:, None, None]  # [P, K], [P, 1, 1]
    v = x.to(wide).reshape(levels.shape[0], -1)  # [P, L]
    code = _nearest(v, levels)
    m = q.gather(1, code)[..., None]  # [P, L, 1]
    d = v.clamp(-1e30, 1e30)[..., None] - q[:, None, :]  # [P, L, K]
    to_nearest = v.clamp(-1e30, 1e30)[..., None] - m
    pi = torch.softmax(t * (q[:, None, :] - m) * (d + to_nearest), dim=-1)
    y = (pi * q[:, None, :]).sum(-1) + 0.0
    if hard:
        nearest = torch.where(v.isnan(), v, levels.to(torch.float32).gather(1, code).to(wide))
        y = ste_replace(y, torch.where(t[..., 0] > 0, nearest + 0.0, torch.nan))
    return y.to(x.dtype).reshape(x.shape)


def harden(x: Tensor, levels: Tensor) -> Hardened:
    """levels: [K]."""
    q = levels.detach() + 0.0  # the forward has no -0
    codes = _nearest(x.reshape(1, -1), q[None]).to(torch.uint8).reshape(x.shape)
    return Hardened(codes, q, torch.ones(1, dtype=torch.float32, device=x.device))
