"""Where quantizer parameters start, and how many there are: shared by the ``config.py`` of every op."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Multiples of the paper's starting value that `least_error` tries: 1/8 to 2.8, each 9 % above the one before.
_MULTIPLES = tuple(2.0 ** (i / 8) for i in range(-24, 13))


def check_granularity(name: str, granularity: str | int) -> None:
    """ValueError or TypeError unless granularity is "tensor", "row" or a group size."""
    if isinstance(granularity, bool) or not isinstance(granularity, (str, int)):
        raise TypeError(f'{name}: granularity must be "tensor", "row" or an int, got {type(granularity).__name__}')
    if granularity not in ("tensor", "row") and not (isinstance(granularity, int) and granularity >= 1):
        raise ValueError(f'{name}: granularity must be "tensor", "row" or a group size >= 1, got {granularity!r}')


def check_flag(name: str, key: str, value: bool) -> None:
    """TypeError unless value is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {key} must be a bool, got {type(value).__name__}")


def blocks(name: str, granularity: str | int, shape: Sequence[int]) -> int:
    """P, the number of blocks of a weight [N, ...]: 1 ("tensor"), N ("row"), N * K / g (a group size g), K = numel / N.

    Raises:
        ValueError: g does not divide K.
    """
    N, K = shape[0], math.prod(shape[1:])
    if granularity == "tensor":
        return 1
    if granularity == "row":
        return N
    if K % granularity:
        raise ValueError(f"{name}: the group size must divide K={K}, got {granularity}")
    return N * K // granularity


def least_error(x: Tensor, start: Tensor, quantize: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The multiple of ``start`` at which ``quantize(x, value)`` has the least squared error, for each block.

    The papers' starting values are far from it at low widths. Training makes up for that in a few epochs; short runs,
    and models that are only rounded, keep the difference.

    Args:
        x: any shape, float, at least one element.
        start: float32 [P], positive.
        quantize: (x, [P]) -> like x.

    Returns:
        float32 [P]; start itself is tried too, so that no block ends worse than it began.
    """
    best, least = start, torch.full_like(start, torch.inf)
    wide = x.to(torch.float32)
    for multiple in _MULTIPLES:
        value = start * multiple
        error = quantize(wide, value).sub_(wide).reshape(start.shape[0], -1).square_().sum(1)  # [P]
        best, least = torch.where(error < least, value, best), torch.minimum(error, least)
    return best


def fill_empty(value: Tensor, empty: float) -> Tensor:
    """value [P] >= 0, its zeros (blocks of zeros) replaced by the mean of the others, or by ``empty`` if all are."""
    positive = value > 0
    mean = value.sum() / positive.sum()  # NaN where none is positive
    return torch.where(positive, value, torch.where(positive.any(), mean, empty))
