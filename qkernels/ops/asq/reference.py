"""ASQ in plain PyTorch: the definition. Differentiable by construction, so it is also the gradient oracle."""

import torch
from torch import Tensor

from qkernels.ops.grids import positive
from qkernels.ops.ste import clamp, scale_grad, ste_round

LEAST = 2.0**-126  # of step * beta: below, it would be denormal or 0


def step_of(step: Tensor, beta: Tensor, grad_scale: float | None) -> Tensor:
    """step * beta [P], NaN where one of them is not positive; only step's gradient has the factor."""
    return (positive(scale_grad(step, grad_scale)) * positive(beta)).clamp_min(LEAST)


def asq(x: Tensor, step: Tensor, beta: Tensor, qmin: int, qmax: int, grad_scale: float | None = None) -> Tensor:
    """x: any shape; step, beta: [P] float32. round(clamp(x / (step beta))) * step beta."""
    s = step_of(step, beta, grad_scale)[:, None]  # [P, 1]
    v = x.to(torch.float32).reshape(s.shape[0], -1) / s  # [P, L]
    return (ste_round(clamp(v, qmin, qmax)) * s + 0.0).to(x.dtype).reshape(x.shape)
