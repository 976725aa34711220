"""Matmul with packed weights in plain PyTorch: the definition. The weight comes from ``LutWeight.dequantize``."""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def lut_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x: [..., K], weight: float32 [N, K], bias: [N] or None -> [..., N] in x's dtype, computed in float32 or wider."""
    wide = torch.promote_types(x.dtype, torch.float32)
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):  # "meta" has none
        return F.linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)).to(x.dtype)
