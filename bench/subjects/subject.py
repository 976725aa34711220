"""What the benchmark needs to know of an op."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Tensor]  # (x, *parameters) -> like x


@dataclass(frozen=True)
class Subject:
    """One op in one setting. eager: what a user would write, checked to give the same values."""

    op: str
    variant: str  # what it is compared with, or how it is set up
    bits: int
    ours: Function
    eager: Function
    parameters: Callable[[], tuple[Tensor, ...]]  # for x normal with deviation 0.5
    torch: Function | None = None  # the same function, if torch has one fused
    shape: tuple[int, ...] | None = None  # of x; None: a row of 2**20 elements, or what the device's run takes
    kernels: str = ""  # the op on whose kernels it runs, if it has none of its own
    heavy: bool = False  # eager needs N x K: beyond 2**23 elements only ours is measured
    slow: bool = False  # an eager pass takes a second: fewer rounds
    soft: bool = False  # values that an exponential enters: they agree to rounding, not to the bit


def ste(value: Tensor, x: Tensor) -> Tensor:
    """``value`` forward, the gradient of x backward."""
    return x + (value - x).detach()


def one(value: float) -> Callable[[], tuple[Tensor]]:
    """One parameter of one block."""
    return lambda: (torch.tensor([value]),)
