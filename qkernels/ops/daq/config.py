"""DAQ as a module's method: its options, where bounds and scale start, its call."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkernels.ops import calibration
from qkernels.ops.grids import Hardened, IntegerGrid

from . import op

_ROLES = ("weight", "activation")
_VARIANTS = ("standardized", "scale")
_APART = 2.0**-10  # the least distance of the bounds, relative to them: float32 tells their codes apart
_TINY = 2.0**-100


@dataclass(frozen=True, kw_only=True)
class DAQ:
    """Distance-aware quantization (Kim et al. 2021, arXiv:2108.06983); see ``qkernels.daq``.

    variant "standardized" is that of the authors' release (cvlab-yonsei/DAQ): bounds and a scale are learned. The
    bounds of a weight are in units of its standard deviation from its mean, which are taken of each block in every
    forward and get no gradient; they start at -3 and 3. The bounds of an activation start at 3 standard deviations from
    0: an unsigned one's lower bound stays 0, a signed one's is learned. variant "scale" is that of the authors' later
    code (cvlab-yonsei/YonseiAutoML): one scale s is learned, between the bounds -s and s (unsigned: 0 and s), on a grid
    with 2**bits - 1 levels if signed.

    Differences from the release: the scale, there one factor on a layer's output that starts from a batch, is here one
    of the weight and one of the activation, each started by least squares, <x, y> / <y, y>, so that a layer starts near
    what it was; a signed activation's lower bound starts below 0 rather than at it; variant "scale" starts at the best
    multiple of 3 standard deviations. The release keeps nothing from crossing: here bounds that cross count as if they
    had not (upper is reflected at lower), and they keep 2**-10 (of a deviation, of an activation's lower bound) apart.
    The deviation is at least 2**-10 of the |mean|. Statistics are float32: weights should be between 1e-12 and 1e12 in
    size. As in the release a block's mean is not added again: where it matters, before training, use "tensor".

    Args:
        bits: 1 to 8 (variant "scale", signed: 2 to 8).
        signed: whether the grid has negative levels. None: weights yes, activations if the calibration batch has any.
        granularity: "tensor" (the paper's) | "row" (per output row or channel) | group size g along K, K % g == 0.
            Activations: "tensor".
        gamma, sigma: of the gradient; see ``qkernels.daq``. sigma None is the release's: weights 1, activations 2.
        variant: "standardized" | "scale".
        role: "weight" | "activation": what it quantizes; None is a weight, until a layer decides.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    bits: int
    signed: bool | None = None
    granularity: str | int = "tensor"
    gamma: float = 2.0
    sigma: float | None = None
    variant: str = "standardized"
    role: str | None = None

    positive: ClassVar[tuple[str, ...]] = ("scale",)
    # "standardized" takes the mean off each row, which a net with batch norm does not see, and one without does
    presets: ClassVar[dict[str, dict]] = {"DAQ": {"granularity": "row", "variant": "scale"}}

    def __post_init__(self) -> None:
        for key, known in (("variant", _VARIANTS), ("role", (None, *_ROLES))):
            if getattr(self, key) not in known:
                names = ", ".join(map(str, known))
                raise ValueError(f"DAQ: {key} must be one of {names}, got {getattr(self, key)!r}")
        if self.signed is not None:
            calibration.check_flag("DAQ", "signed", self.signed)
        op.largest_code("DAQ", self.bits, bool(self.signed), self.variant == "scale" and bool(self.signed))
        op.checked_shape("DAQ", self.gamma, self.sigma, True)
        calibration.check_granularity("DAQ", self.granularity)

    @property
    def parameters(self) -> tuple[str, ...]:
        return ("scale",) if self.variant == "scale" else ("lower", "upper", "scale")

    @property
    def n_levels(self) -> int:
        signed = self.signed is not False
        return op.largest_code("DAQ", self.bits, signed, signed and self.variant == "scale") + 1

    def module(
        self, shape: Sequence[int] | None, *, dtype: torch.dtype | None, device: torch.device | str | None
    ) -> nn.Module:
        """The ordinary quantizer, with the role that it has there."""
        from qkernels.nn.quantizer import Quantizer

        role = "activation" if shape is None else "weight"
        return Quantizer(dataclasses.replace(self, role=role), shape, dtype=dtype, device=device)

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """The start for x: {"lower", "upper", "scale"}, or {"scale"} in variant "scale"; each float32 [P].

        Where all of a block is one value, an activation's bound starts at its size; a scale that would be 0 (a block of
        zeros) starts at the mean of the others, or, if all are, at 1 / sqrt(K), K = numel / x.shape[0].
        """
        x = x.detach().float()
        empty = (x.numel() / x.shape[0]) ** -0.5
        signed, (_, deviation) = self._signed(), statistics(x, P)
        largest = x.abs().reshape(P, -1).amax(1)
        size = torch.where(deviation > 1e-3 * largest, 3 * deviation, largest)
        if self.variant == "scale":
            start = calibration.fill_empty(torch.where(largest > 0, size, 0.0), empty)
            return {"scale": calibration.least_error(x, start, lambda x, s: self.quantize(x, s))}
        upper = torch.full_like(size, 3.0) if self._is_weight else torch.where(largest > 0, size, 1.0)
        lower = -upper if signed or self._is_weight else torch.zeros_like(upper)
        unit = self.quantize(x, lower, upper, torch.ones_like(upper)).reshape(P, -1)
        scale = (x.reshape(P, -1) * unit).sum(1) / unit.square().sum(1)
        return {"lower": lower, "upper": upper, "scale": calibration.fill_empty(scale.nan_to_num().clamp_min(0), empty)}

    def quantize(self, x: Tensor, *parameters: Tensor, samples: int = 1) -> Tensor:
        options, sigma = self._options(), self.sigma or (1.0 if self._is_weight else 2.0)
        return op.daq(x, *self._grid(x, *parameters), **options, gamma=self.gamma, sigma=sigma)

    def fixed(self, *parameters: Tensor) -> Callable[[Tensor], Tensor] | None:
        if self._is_weight:  # whose bounds follow it
            return None
        options = self._options()
        return op.fixed(*self._grid(parameters[0], *parameters), **options)

    @property
    def integer_bits(self) -> int:
        return op.integer_bits(self.bits, bool(self.signed), self.variant == "scale")

    def integer_grid(self, *parameters: Tensor) -> IntegerGrid:
        options = self._options()
        return op.integer_grid(*self._grid(parameters[0], *parameters), **options)

    def harden(self, x: Tensor, *parameters: Tensor) -> Hardened:
        options = self._options()
        return op.harden(x, *self._grid(x, *parameters), **options)

    def _grid(self, x: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(lower, upper, scale) of x itself, as the op takes them."""
        if self.variant == "scale":
            (scale,) = parameters
            return -scale if self.signed else torch.zeros_like(scale), scale, scale
        lower, upper, scale = parameters
        if not (self._is_weight or self.signed):
            lower = lower * 0  # in the graph all the same: a parameter without a gradient stops DDP
        gap = (upper - lower + _TINY).abs()  # where they meet its gradient is 1
        if self._is_weight:
            mean, deviation = statistics(x, lower.shape[0])
            lower = torch.addcmul(mean, deviation, lower)
            return lower, torch.addcmul(lower, deviation, _at_least(gap, _APART)), scale
        return lower, lower + _at_least(gap, lower.detach().abs() * _APART + _TINY), scale

    @property
    def _is_weight(self) -> bool:
        return self.role != "activation"

    def _options(self) -> dict[str, int | bool]:
        """Those of the grid, as the op takes them."""
        signed = self._signed()
        return {"bits": self.bits, "signed": signed, "symmetric": signed and self.variant == "scale"}

    def _signed(self) -> bool:
        if self.signed is None:
            raise ValueError("DAQ: signed must be decided (True or False) before x is quantized, got None")
        return self.signed


@torch.no_grad()
def statistics(x: Tensor, P: int) -> tuple[Tensor, Tensor]:
    """(mean, unbiased standard deviation) of each block, float32 [P]; the latter at least 2**-10 of |mean|, and not 0.

    From the sum and the norm, which read x as it is and make no tensor of its size; torch.std takes 40 times as long.
    """
    flat = x.reshape(P, -1)  # [P, L]
    L = flat.shape[1]
    mean = flat.sum(1, dtype=torch.float32) / L
    squares = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32).square()
    variance = torch.addcmul(squares, mean, mean, value=-L) / max(L - 1, 1)
    return mean, torch.maximum(variance, mean.square() * _APART**2 + _TINY).sqrt()


def _at_least(value: Tensor, least: Tensor | float) -> Tensor:
    """The larger; the gradient goes to value all the same, so that it can grow again."""
    return value + (least - value.detach()).clamp_min(0)
