"""What a hard quantizer leaves behind, and the level grids that more than one op needs."""

from typing import NamedTuple

import torch
from torch import Tensor


class Hardened(NamedTuple):
    """The codes and levels that training's forward used: levels[codes] * scale of the block, one float32 product."""

    codes: Tensor  # uint8, the shape of x
    levels: Tensor  # float32 [K]
    scale: Tensor  # float32 [P]

    def value(self) -> Tensor:
        """The quantized tensor, float32."""
        level = self.levels[self.codes.long()]
        return (level.reshape(self.scale.shape[0], -1) * self.scale[:, None] + 0.0).reshape(self.codes.shape)


class IntegerGrid(NamedTuple):
    """What an activation quantizer rounds to: the integers qmin, qmin + by, ... qmax, times step.

    The nearest to x / step, as ``lsq`` has it, or with bounds the one that ``daq`` finds between them.
    """

    step: Tensor  # float32 [P]; with bounds NaN where the scale is not positive, and 0 where it is too small
    qmin: int
    qmax: int
    lower: Tensor | None = None  # float32 [P]
    upper: Tensor | None = None
    by: int = 1


def positive(parameter: Tensor) -> Tensor:
    """``parameter`` where it is positive, NaN elsewhere: a step or scale that collapsed must not pass unseen."""
    return torch.where(parameter > 0, parameter, torch.nan)
