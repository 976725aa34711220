"""CPQ as a module's method: its options, where step and sigma start, its call."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkernels.ops import blocks, calibration
from qkernels.ops.grids import Hardened
from qkernels.ops.ste import clamp_pulling_back

from . import op

_RHO = (0.5, 20.0)  # step / sigma: left free it was seen to drift to hundreds, where only weights at a bin's edge learn


@dataclass(frozen=True, kw_only=True)
class CPQ:
    """Cluster-promoting quantization, also with DropBits (Lee et al. 2021, arXiv:2109.02100); see ``qkernels.cpq``.

    The layer trains step and sigma, with step / sigma kept between 0.5 and 20: outside, sigma has only the gradient
    that leads back.

    Args:
        bits: 2 to 8 (unsigned: 1 to 8).
        signed: whether the grid has negative levels. None: weights yes, activations if the calibration batch has any.
        granularity: "tensor" (the paper's) | "row" (per output row or channel) | group size g along K, K % g == 0.
            Activations: "tensor".
        estimator: "argmax" | "full".
        truncate: whether the probabilities are those given that x is on the grid.
        symmetric: leaves out the most negative code, so that dropbits changes nothing else.
        dropbits: None | "bitwise" (a gate for each bit) | "endpoints" (one for each magnitude): gates that are trained,
            and drawn anew for each step of training. Weights only; see ``qkernels.nn.DropBitsQuantizer``.
        penalty: with dropbits, what ``qkernels.penalty`` charges for each level that is expected to be kept. The
            paper's value is not known.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    bits: int
    signed: bool | None = None
    granularity: str | int = "tensor"
    estimator: str = "argmax"
    truncate: bool = False
    symmetric: bool = False
    dropbits: str | None = None
    penalty: float = 0.0

    parameters: ClassVar[tuple[str, ...]] = ("step", "sigma")
    positive: ClassVar[tuple[str, ...]] = ("step", "sigma")
    presets: ClassVar[dict[str, dict]] = {
        "CPQ": {"granularity": "row"},
        "DropBits": {"granularity": "row", "dropbits": "bitwise", "penalty": 0.03},
    }

    def __post_init__(self) -> None:
        calibration.check_granularity("CPQ", self.granularity)
        if self.signed is not None:
            calibration.check_flag("CPQ", "signed", self.signed)
        calibration.check_flag("CPQ", "symmetric", self.symmetric)
        blocks.int_range("CPQ", self.bits, bool(self.signed or self.symmetric or self.dropbits))
        op.check_estimator("CPQ", self.estimator, self.truncate)
        if (self.symmetric or self.dropbits is not None) and self.signed is False:
            raise ValueError("CPQ: symmetric and dropbits must go with signed=True or None, got signed=False")
        if self.dropbits not in (None, "bitwise", "endpoints"):
            raise ValueError(f"CPQ: dropbits must be None, bitwise or endpoints, got {self.dropbits!r}")
        if self.dropbits and self.estimator == "full":
            raise ValueError("CPQ: dropbits must go with estimator='argmax', got 'full'")
        if isinstance(self.penalty, bool) or not isinstance(self.penalty, int | float):
            raise TypeError(f"CPQ: penalty must be a float, got {type(self.penalty).__name__}")
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise ValueError(f"CPQ: penalty must be at least 0 and finite, got {self.penalty}")
        if self.penalty and not self.dropbits:
            raise ValueError(f"CPQ: penalty must go with dropbits, got penalty={self.penalty} and dropbits=None")

    @property
    def n_levels(self) -> int:
        return 2**self.bits - (self.symmetric or self.dropbits is not None)

    @property
    def n_gates(self) -> int:
        """How many gates dropbits has."""
        return self.bits - 1 if self.dropbits == "bitwise" else 2 ** (self.bits - 1) - 1

    def module(
        self, shape: Sequence[int] | None, *, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> nn.Module:
        from qkernels.nn.dropbits import DropBitsQuantizer  # the modules import the methods
        from qkernels.nn.quantizer import Quantizer

        if self.dropbits is None:
            return Quantizer(self, shape, dtype=dtype, device=device)
        if shape is None:
            raise ValueError(f"CPQ: dropbits must go with a weight, got {self.dropbits!r} for activations")
        return DropBitsQuantizer(self, shape, dtype=dtype, device=device)

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """step, float32 [P], with the least squared error; sigma = step / 3.

        A block of zeros gets the mean of the others; a tensor of zeros starts as if its elements were 1 / sqrt(K),
        K = numel / x.shape[0].
        """
        low, high = self._grid()
        mean = x.detach().abs().double().reshape(P, -1).mean(1).float()  # [P]; in float32 the sum may overflow
        start = calibration.fill_empty(mean, (x.numel() / x.shape[0]) ** -0.5) * (2 * high**-0.5)
        signed, symmetric = low < 0, low == -high
        step = calibration.least_error(
            x, start, lambda x, s: op.cpq(x, s, s / 3, bits=self.bits, signed=signed, symmetric=symmetric)
        )
        return {"step": step, "sigma": step / 3}

    def quantize(
        self, x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor | None = None, *, samples: int = 1
    ) -> Tensor:
        """keep: with dropbits, the gates; without them no level is dropped."""
        low, high = self._grid()
        sigma = _near(sigma, step)
        options = dict(bits=self.bits, signed=low < 0, estimator=self.estimator, truncate=self.truncate)
        return op.cpq(x, step, sigma, keep, symmetric=low == -high, **options)

    def harden(self, x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor | None = None) -> Hardened:
        low, high = self._grid()
        return op.harden(x, step, _near(sigma, step), keep, bits=self.bits, signed=low < 0, symmetric=low == -high)

    def _grid(self) -> tuple[int, int]:
        if self.signed is None:
            raise ValueError("CPQ: signed must be decided (True or False) before x is quantized, got None")
        return op.grid("CPQ", self.bits, self.signed, self.symmetric or self.dropbits is not None)


def _near(sigma: Tensor, step: Tensor) -> Tensor:
    """sigma with step / sigma between the ends of _RHO."""
    step = step.detach()
    return clamp_pulling_back(sigma, step / _RHO[1], step / _RHO[0])
