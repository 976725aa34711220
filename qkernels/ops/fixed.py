"""An activation quantizer whose parameters stay as they are: one call of its op, or part of a call that does more."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from qkernels import backends


@dataclass(frozen=True, slots=True)
class Fixed:
    """``op(x, *tensors, *options)`` without gradients, for a contiguous x.

    op: the public function, e.g. "lsq". forward: that op's call, whose last argument is a backend.
    """

    op: str
    forward: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]  # float32 [P]
    options: tuple[int | bool, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(x, *self.tensors, *self.options, backends.resolve(self.op, x, None))
