"""ASQ as a method of layers: weights on POST's grid, activations with a step that adapts to each sample."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkernels.ops import calibration
from qkernels.ops.grids import Hardened
from qkernels.ops.lsq.config import LSQ
from qkernels.ops.post.config import POST


@dataclass(frozen=True, kw_only=True)
class ASQ:
    """ASQ + POST (arXiv:2504.17263): adaptive steps for activations, powers of sqrt(2) for weights.

    Of a weight it is ``POST(bits=bits, granularity=granularity, grid=grid, grad_scale=grad_scale)``. Of an activation
    it is ``qkernels.nn.AdaptiveStep``: ``qk.asq`` with beta from a small network that sees the sample's channel means.
    So (ASQ, ASQ) on a layer is the paper's method.

    As in the authors' release (SENGEL13/ASQ-POST): adapter, its start, the grids, rows for weights. Other than there:
    the step starts like LSQ's here; grad_scale counts one sample's elements, where the release counts the batch's;
    without a sign given the calibration batch decides; each row of a linear layer's input, such as a token, has a beta.

    Args:
        bits: 2 to 8 (of unsigned activations: 1 to 8, of weights as ``POST``).
        signed: whether an activation's grid has negative levels; None: if the calibration batch has any.
        granularity: of weights: "row" | "tensor" | group size g along K, K % g == 0.
        grid: of weights: "exact" | "release" | "nozero"; see ``POST``.
        grad_scale: whether the gradient of the step is multiplied by 1 / sqrt(L * qmax), of a weight's scale by
            1 / sqrt(L); L elements to a block or sample. beta has no such factor, as in the release.
        bound: None is the release's beta = max(relu(h), 1e-8), where an adapter that gives h <= 0 is dead: no gradient
            reaches it. A number r > 0 is beta = exp(clamp(h - 1, -r, r)), which is as much at its start, h = 1, and
            between e**-r and e**r; its gradient vanishes beyond only.
        detach_adapter_input: whether the adapter's gradient stops before x, which saves a pass over dx.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    bits: int
    signed: bool | None = None
    granularity: str | int = "row"
    grid: str = "exact"
    grad_scale: bool = True
    bound: float | None = None
    detach_adapter_input: bool = False

    parameters: ClassVar[tuple[str, ...]] = ("step",)
    positive: ClassVar[tuple[str, ...]] = ("step",)

    def __post_init__(self) -> None:
        self.step_config()
        for key in ("grad_scale", "detach_adapter_input"):
            calibration.check_flag("ASQ", key, getattr(self, key))
        calibration.check_granularity("ASQ", self.granularity)
        if self.bound is not None:
            if isinstance(self.bound, bool) or not isinstance(self.bound, (int, float)):
                raise TypeError(f"ASQ: bound must be a number or None, got {type(self.bound).__name__}")
            if not 0 < self.bound <= 16:
                raise ValueError(f"ASQ: bound must be above 0 and at most 16, got {self.bound:g}")

    def step_config(self) -> LSQ:
        """The config of the activation's step without its adapter."""
        return LSQ(bits=self.bits, signed=self.signed, grad_scale=self.grad_scale)

    def weight_config(self) -> POST:
        return POST(bits=self.bits, granularity=self.granularity, grid=self.grid, grad_scale=self.grad_scale)

    @property
    def n_levels(self) -> int:
        return self.weight_config().n_levels

    @property
    def integer_bits(self) -> int:
        return self.bits

    def module(
        self, shape: Sequence[int] | None, *, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> nn.Module:
        """The quantizer of a weight."""
        from qkernels.nn.quantizer import Quantizer

        return Quantizer(self.weight_config(), shape, dtype=dtype, device=device)

    def activation_module(
        self, channels: int, dim: int, *, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> nn.Module:
        """The quantizer of an activation with ``channels`` channels in dimension ``dim``."""
        from qkernels.nn.adaptive import AdaptiveStep

        return AdaptiveStep(self, channels, dim, dtype=dtype, device=device)

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """Where an activation's step starts: as LSQ's."""
        return self.step_config().init(x, P)

    def quantize(self, x: Tensor, step: Tensor, *, samples: int = 1) -> Tensor:
        """An activation, every beta being 1."""
        return self.step_config().quantize(x, step, samples=samples)

    def harden(self, x: Tensor, step: Tensor) -> Hardened:
        """Of an activation, every beta being 1."""
        return self.step_config().harden(x, step)
