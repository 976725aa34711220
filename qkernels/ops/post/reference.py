"""POST in plain PyTorch: the definition, as nearest level by comparison with the midpoints."""

import torch
from torch import Tensor

from qkernels.ops.grids import Hardened, positive
from qkernels.ops.ste import clamp, scale_grad, ste_replace

SQRT2 = 1.4140625  # bfloat16(sqrt(2)), so that a level is exact in bfloat16 and float16; 1.1e-4 below the real one


def magnitudes(count: int, zero: bool) -> list[float]:
    """Ascending: (0,) 2**(-(count - 1) / 2), ..., 2**-0.5, 1."""
    powers = [2.0 ** -(k // 2) if k % 2 == 0 else SQRT2 * 2.0 ** -((k + 1) // 2) for k in range(count)]
    return [0.0] * zero + powers[::-1]


def levels(count: int, zero: bool) -> list[float]:
    """Every level, ascending: code i of ``harden`` is the i-th."""
    positive_levels = magnitudes(count, False)
    return [-m for m in positive_levels[::-1]] + [0.0] * zero + positive_levels


def _nearest(u: Tensor, count: int, zero: bool) -> Tensor:
    """The level nearest to u in [-1, 1]; half way goes to the larger magnitude, 0 to the positive side, NaN stays."""
    m = torch.tensor(magnitudes(count, zero), dtype=torch.float32, device=u.device)
    level = m[torch.bucketize(u.abs(), (m[1:] + m[:-1]) / 2, right=True)]
    return torch.where(u.isnan(), u, torch.where(u < 0, -level, level) + 0.0)


def post(
    w: Tensor, scale: Tensor, count: int, zero: bool, clip_grad: bool = True, grad_scale: float | None = None
) -> Tensor:
    """w: any shape; scale: [P] float32. nearest(clamp(w / scale, -1, 1)) * scale."""
    a = positive(scale_grad(scale, grad_scale))[:, None]  # [P, 1]
    wide = w.to(torch.float32).reshape(scale.shape[0], -1).contiguous()  # [P, L]
    u = clamp(wide / a, -1, 1)
    y = ste_replace(u, _nearest(u.detach(), count, zero)) * a + 0.0
    if not clip_grad:
        y = y + ste_replace(torch.where((wide / a).abs() > 1, wide, 0.0), torch.zeros_like(wide))
    return y.to(w.dtype).reshape(w.shape)


def harden(w: Tensor, scale: Tensor, count: int, zero: bool) -> Hardened:
    grid = torch.tensor(levels(count, zero), dtype=torch.float32, device=w.device)
    u = (w.detach().to(torch.float32).reshape(scale.shape[0], -1) / positive(scale.detach())[:, None]).clamp(-1, 1)
    codes = torch.bucketize(_nearest(u.contiguous(), count, zero), grid).to(torch.uint8).reshape(w.shape)
    return Hardened(codes, grid, scale.detach())
