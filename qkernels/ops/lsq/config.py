"""LSQ as a module's method: its options, where its step starts, its call."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from qkernels.ops import blocks, calibration
from qkernels.ops.grids import Hardened, IntegerGrid

from . import op


@dataclass(frozen=True, kw_only=True)
class LSQ:
    """Learned step size quantization (Esser et al. 2020, arXiv:1902.08153); see ``qkernels.lsq``.

    Args:
        bits: 2 to 8 (unsigned: 1 to 8).
        signed: whether the grid has negative levels. None: weights yes, activations if the calibration batch has any.
        granularity: "tensor" (the paper's) | "row" (per output row or channel) | group size g along K, K % g == 0.
            Activations: "tensor".
        grad_scale: whether step's gradient is multiplied by 1 / sqrt(L * qmax), L elements to a block; of activations,
            elements of one sample, so that it does not depend on the batch (section 2.2).

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    bits: int
    signed: bool | None = None
    granularity: str | int = "tensor"
    grad_scale: bool = True

    parameters: ClassVar[tuple[str, ...]] = ("step",)
    positive: ClassVar[tuple[str, ...]] = ("step",)

    def __post_init__(self) -> None:
        blocks.int_range("LSQ", self.bits, bool(self.signed))
        calibration.check_granularity("LSQ", self.granularity)
        if self.signed is not None:
            calibration.check_flag("LSQ", "signed", self.signed)
        calibration.check_flag("LSQ", "grad_scale", self.grad_scale)

    @property
    def n_levels(self) -> int:
        return 2**self.bits

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """{"step": float32 [P]}: the multiple of the paper's 2 * mean|x| / sqrt(qmax) with the least squared error.

        A block of zeros gets the mean of the others; a tensor of zeros starts as if its elements were 1 / sqrt(K),
        K = numel / x.shape[0].
        """
        qmax = self._qmax()
        mean = x.detach().abs().double().reshape(P, -1).mean(1).float()  # [P]; in float32 the sum may overflow
        start = calibration.fill_empty(mean, (x.numel() / x.shape[0]) ** -0.5) * (2 * qmax**-0.5)
        signed = self._signed()
        return {"step": calibration.least_error(x, start, lambda x, s: op.lsq(x, s, bits=self.bits, signed=signed))}

    def quantize(self, x: Tensor, step: Tensor, *, samples: int = 1) -> Tensor:
        L = x.numel() // (step.shape[0] * max(samples, 1))
        kappa = self.step_grad_scale(L) if self.grad_scale else None
        return op.lsq(x, step, bits=self.bits, signed=self._signed(), grad_scale=kappa)

    def fixed(self, step: Tensor) -> Callable[[Tensor], Tensor]:
        return op.fixed(step, bits=self.bits, signed=self._signed())

    @property
    def integer_bits(self) -> int:
        return self.bits

    def integer_grid(self, step: Tensor) -> IntegerGrid:
        return op.integer_grid(step, bits=self.bits, signed=self._signed())

    def step_grad_scale(self, L: int) -> float:
        """1 / sqrt(L * qmax)."""
        return (max(L, 1) * self._qmax()) ** -0.5

    def harden(self, x: Tensor, step: Tensor) -> Hardened:
        return op.harden(x, step, bits=self.bits, signed=self._signed())

    def _signed(self) -> bool:
        if self.signed is None:
            raise ValueError("LSQ: signed must be decided (True or False) before x is quantized, got None")
        return self.signed

    def _qmax(self) -> int:
        return 2 ** (self.bits - int(self._signed())) - 1
