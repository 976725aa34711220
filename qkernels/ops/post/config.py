"""POST as a module's method: its options, where its scale starts, its call."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qkernels.ops import calibration
from qkernels.ops.grids import Hardened

from . import op


@dataclass(frozen=True, kw_only=True)
class POST:
    """Weights on powers of sqrt(2) (arXiv:2504.17263 and its authors' release); see ``qkernels.post``.

    Args:
        bits: 2 to 8 (grid "nozero": 1 to 8; grid "release": 2 to 7, since 8 has 257 levels and a code holds 256).
        granularity: "row" (per output row or channel, the release's) | "tensor" | group size g along K, K % g == 0.
        grid: "exact" | "release" (2**bits + 1 levels: packed one width up) | "nozero".
        clip_grad: whether clipped weights get no gradient.
        grad_scale: whether scale's gradient is multiplied by 1 / sqrt(L), L elements to a block; of activations,
            elements of one sample.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    bits: int
    granularity: str | int = "row"
    grid: str = "exact"
    clip_grad: bool = True
    grad_scale: bool = True

    parameters: ClassVar[tuple[str, ...]] = ("scale",)
    positive: ClassVar[tuple[str, ...]] = ("scale",)

    def __post_init__(self) -> None:
        levels = op.post_levels(self.bits, self.grid).numel()
        if levels > 256:
            raise ValueError(f"POST: a code must fit 8 bits, got {levels} levels ({self.bits} bits, grid {self.grid})")
        calibration.check_granularity("POST", self.granularity)
        calibration.check_flag("POST", "clip_grad", self.clip_grad)
        calibration.check_flag("POST", "grad_scale", self.grad_scale)

    @property
    def n_levels(self) -> int:
        return op.post_levels(self.bits, self.grid).numel()

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """{"scale": float32 [P]}: the multiple of the release's 0.99-quantile of |x| with the least squared error.

        A block whose quantile is 0 starts from its largest |x|, a block of zeros from the mean of the others, and a
        tensor of zeros as if its largest element were 1 / sqrt(K), K = numel / x.shape[0].
        """
        size = x.detach().abs().float().reshape(P, -1)  # [P, L]
        L = size.shape[1]
        top = size.topk(L - math.ceil(0.99 * L) + 1, dim=1).values  # torch.quantile stops at 2**24 elements
        start = torch.where(top[:, -1] > 0, top[:, -1], top[:, 0])
        start = calibration.fill_empty(start, (x.numel() / x.shape[0]) ** -0.5)
        return {"scale": calibration.least_error(x, start, lambda x, s: op.post(x, s, bits=self.bits, grid=self.grid))}

    def quantize(self, x: Tensor, scale: Tensor, *, samples: int = 1) -> Tensor:
        L = x.numel() // (scale.shape[0] * max(samples, 1))
        kappa = max(L, 1) ** -0.5 if self.grad_scale else None
        return op.post(x, scale, bits=self.bits, grid=self.grid, clip_grad=self.clip_grad, grad_scale=kappa)

    def harden(self, x: Tensor, scale: Tensor) -> Hardened:
        return op.harden(x, scale, bits=self.bits, grid=self.grid)
