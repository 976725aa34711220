"""The three sums a channel in plain PyTorch: the definition."""

import torch
from torch import Tensor

from qkernels.ops.grids import positive


def channel_error(x: Tensor, step: Tensor, qmin: int, qmax: int, dim: int) -> Tensor:
    """[3, C]: sums of x**2, k x and k**2 over all dimensions but ``dim``; k is decided in float32, 0 <= dim."""
    v = x.detach().to(torch.promote_types(x.dtype, torch.float32)).movedim(dim, 0).reshape(x.shape[dim], -1)  # [C, n]
    k = (v.to(torch.float32) / positive(step.detach())).clamp(qmin, qmax).round().to(v.dtype)
    return torch.stack([(v * v).sum(1), (k * v).sum(1), (k * k).sum(1)])
