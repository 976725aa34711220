"""The quantizers of ``qkernels.DQ``: a learned codebook for weights, a step that balances channels for activations."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..methods import describe
from ..ops import calibration
from ..ops.channel_error.op import channel_error
from ..ops.grids import Hardened
from ..ops.lsq.op import lsq
from ..ops.soft_assign.config import DQ, balanced_step, objective
from ..quant import harden
from .quantizer import Quantizer, _over_ranks


class CodebookQuantizer(Quantizer):
    """A weight on the nearest of K learned levels, with the gradients of ``qkernels.soft_assign``.

    ``levels`` is a parameter [K], in any order: the grid is the set of its values, sorted at every call, so that an
    optimizer step that carries one level past another does no harm. A level that has no weight gets no gradient.
    ``scale`` (buffer float32 [P], constants) is what each block of the weight is divided by. ``sharpness`` (buffer
    float32 [1]) is the inverse temperature in units of 1 / spacing**2; both are in the state dict.
    """

    def __init__(
        self,
        config: DQ,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(config, shape, dtype=dtype, device=device)
        P = self.levels.shape[0]
        self.levels = nn.Parameter(torch.linspace(-1, 1, config.n_levels, dtype=dtype, device=device))
        self.register_buffer("scale", torch.ones(P, device=device))
        self.register_buffer("sharpness", torch.full((1,), float(config.sharpness), device=device))

    def forward(self, x: Tensor) -> Tensor:
        return self.config.quantize(x, self.levels, sharpness=self.sharpness, scale=self._scale())

    def sharpen(self, sharpness: float) -> None:
        """Set the sharpness (see ``DQ``): a schedule calls it as training goes on, e.g. from 4 to 40.

        The gradients go from those of a line (0) to those of steps, which are 0 (inf).

        Raises:
            ValueError: sharpness is not positive and finite.
        """
        if not 0 < sharpness < float("inf"):
            raise ValueError(f"sharpen: sharpness must be positive and finite, got {sharpness}")
        self.sharpness.fill_(sharpness)

    @torch.no_grad()
    def harden(self, x: Tensor) -> Hardened:
        return self.config.harden(x, self.levels, scale=self._scale())

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        self.scale.fill_(1)
        if self._scale() is not None and x.numel() and not x.is_meta:
            mean = x.detach().double().reshape(self.scale.shape[0], -1).square().mean(1)
            self.scale.copy_(calibration.fill_empty(mean.sqrt().float(), (x.numel() / x.shape[0]) ** -0.5))
            x = (x.float().reshape(self.scale.shape[0], -1) / self.scale[:, None]).reshape(x.shape)
        super().calibrate(x)

    def extra_repr(self) -> str:
        return f"{describe(self.config)}, P={self.scale.numel()}, K={self.levels.numel()}"

    def _scale(self) -> Tensor | None:
        return None if self.config.granularity == "tensor" else self.scale


class _Step:
    """What ``Quantizer`` asks of a method, for the step of a balanced activation quantizer."""

    parameters: ClassVar[tuple[str, ...]] = ("step",)
    positive: ClassVar[tuple[str, ...]] = ("step",)

    def __init__(self, config: DQ) -> None:
        self.config = config

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """The step of least objective among many from the largest |x| down, made better for its own codes."""
        balance = self.config.balance
        codes = 2 ** (self.config.bits - int(bool(self.config.signed))) - 1
        top = calibration.fill_empty(x.abs().amax().float().reshape(1), 1.0) / codes
        best = top
        least = torch.full((1,), torch.inf, dtype=torch.float64, device=x.device)
        for i in range(-96, 9):  # 2**-12 to 2, each 9 % above the one before
            step = top * 2.0 ** (i / 8)
            value = objective(self.sums(x, step), step, balance)
            best, least = torch.where(value < least, step, best), torch.minimum(value, least)
        for _ in range(20):
            best = balanced_step(self.sums(x, best), best, balance)
        return {"step": best}

    def sums(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dim = 1 if x.dim() == 4 else -1
        return channel_error(x, step, bits=self.config.bits, dim=dim, signed=bool(self.config.signed))


class BalancedQuantizer(Quantizer):
    """An activation on a uniform grid whose step is the best for the majority of its channels; see ``DQ``.

    Channels are dimension 1 of a 4-D x, else the last. The step is not trained: it starts from the calibration batch
    and, in training mode, follows every batch with the step that is best for that batch's codes, as a running mean
    (0.9 of what was), after the batch itself is quantized. In a distributed run the channels' errors are averaged over
    ranks: a collective call. x gets the straight-through gradient: 1 inside the grid, 0 outside.
    """

    momentum = 0.9

    def __init__(
        self,
        config: DQ,
        shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(config, shape, device=device)  # float32: a running mean in less would stop
        self.step.requires_grad_(False)

    def method(self, config: DQ) -> _Step:
        return _Step(config)

    def forward(self, x: Tensor) -> Tensor:
        if not self.calibrated and not self._start(x):
            return x
        (step,) = self.values()
        y = lsq(x, step, bits=self.config.bits, signed=self.config.signed)
        if self.training and x.numel():
            self._follow(x)
        return y

    @torch.no_grad()
    def harden(self, x: Tensor) -> Hardened:
        (step,) = self.values()
        return harden("lsq", x, step, bits=self.config.bits, signed=self.config.signed)

    @torch.no_grad()
    def _follow(self, x: Tensor) -> None:
        (step,) = self.values()
        sums = _over_ranks(torch.stack(self.method(self.config).sums(x, step)), mean=True)
        best = balanced_step(tuple(sums), step, self.config.balance)
        self.step.copy_(self.momentum * step + (1 - self.momentum) * best)
