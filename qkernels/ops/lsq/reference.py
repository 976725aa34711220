"""LSQ in plain PyTorch: the definition. Differentiable by construction, so it is also the gradient oracle."""

import torch
from torch import Tensor

from qkernels.ops.grids import Hardened, positive
from qkernels.ops.ste import clamp, scale_grad, ste_round


def lsq(x: Tensor, step: Tensor, qmin: int, qmax: int, grad_scale: float | None = None) -> Tensor:
    """x: any shape; step: [P] float32. round(clamp(x / step)) * step."""
    s = positive(scale_grad(step, grad_scale))[:, None]  # [P, 1]
    v = x.to(torch.float32).reshape(step.shape[0], -1) / s  # [P, L]
    return (ste_round(clamp(v, qmin, qmax)) * s + 0.0).to(x.dtype).reshape(x.shape)


def harden(x: Tensor, step: Tensor, qmin: int, qmax: int) -> Hardened:
    v = x.detach().to(torch.float32).reshape(step.shape[0], -1) / positive(step.detach())[:, None]
    codes = (v.clamp(qmin, qmax).round() - qmin).to(torch.uint8).reshape(x.shape)
    return Hardened(codes, torch.arange(qmin, qmax + 1, dtype=torch.float32, device=x.device), step.detach())
