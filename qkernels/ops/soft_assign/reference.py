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
    near = v.clamp(-1e30, 1e30)[..., None]  # [P, L, 1]
    offset = q[:, None, :] - m  # [P, L, K]
    pi = torch.softmax(t * offset * ((near - q[:, None, :]) + (near - m)), dim=-1)
    y = m[..., 0] + (pi * offset).sum(-1)
    if hard:
        nearest = torch.where(v.isnan(), v, levels.to(torch.float32).gather(1, code).to(wide))
        y = ste_replace(y, torch.where(t[..., 0] > 0, nearest + 0.0, torch.nan))
    return y.to(x.dtype).reshape(x.shape)


def harden(x: Tensor, levels: Tensor) -> Hardened:
    """levels: [K]."""
    q = levels.detach() + 0.0  # the forward has no -0
    codes = _nearest(x.reshape(1, -1), q[None]).to(torch.uint8).reshape(x.shape)
    return Hardened(codes, q, torch.ones(1, dtype=torch.float32, device=x.device))


def logits(z: Tensor, levels: Tensor, temperature: Tensor, hard: bool = False) -> Tensor:
    """z: [*shape, K]; levels: [P, K]; temperature: [P]. sum_k softmax_k(t z_k) q_k, or the q of the first largest z."""
    wide = torch.promote_types(z.dtype, torch.float32)
    q, t = levels.to(wide)[:, None, :], positive(temperature.to(wide))[:, None, None]  # [P, 1, K], [P, 1, 1]
    v = z.to(wide).reshape(levels.shape[0], -1, levels.shape[1])  # [P, L, K]
    y = (torch.softmax(t * v, dim=-1) * q).sum(-1) + 0.0
    if hard:
        first = levels.to(torch.float32).to(wide).gather(1, v.detach().argmax(-1)) + 0.0
        y = ste_replace(y, torch.where(v.isnan().any(-1) | t[..., 0].isnan(), torch.nan, first))
    return y.to(z.dtype).reshape(z.shape[:-1])


def basis(z: Tensor, levels: Tensor, temperature: Tensor, hard: bool = False) -> Tensor:
    """z: [*shape, B]; levels: [P, B]; temperature: [P]. sum_j tanh(t z_j) v_j, or sum_j +-v_j with the sign of z_j."""
    wide = torch.promote_types(z.dtype, torch.float32)
    v, t = levels.to(wide)[:, None, :], positive(temperature.to(wide))[:, None, None]  # [P, 1, B], [P, 1, 1]
    code = z.to(wide).reshape(levels.shape[0], -1, levels.shape[1])  # [P, L, B]
    y = (torch.tanh(t * code) * v).sum(-1) + 0.0
    if hard:
        odd = code.isnan().any(-1) | t[..., 0].isnan()
        signed = (torch.where(code < 0, -1.0, 1.0).to(wide) * v).sum(-1) + 0.0
        y = ste_replace(y, torch.where(odd, torch.nan, signed))
    return y.to(z.dtype).reshape(z.shape[:-1])
