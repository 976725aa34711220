"""What the generic tests need to know of an op, and samples and errors that ops have in common."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qkernels import backends


@dataclass(frozen=True)
class Case:
    """``tensors`` below are x and the op's parameters.

    Two kinds of op: a hard one has a forward that equals the reference to the bit and gradients without
    transcendental functions; ``soft_forward`` and ``soft_grad`` say which of the two follows the 2x rule instead
    (testing/compare.py), with the reference in float64 as the truth.
    """

    name: str
    fn: Callable  # the public function
    reference: Callable  # the same call in plain PyTorch, without checks; if soft: in float64 where x is float64
    fwd_args: Callable  # arguments of the forward op after the tensors: (**kwargs) -> tuple
    bwd_args: Callable  # the same for the backward op
    samples: Callable[[str, torch.dtype], Iterator]  # (device, dtype) -> (tensors, kwargs)
    errors: Callable[[], Iterator]  # () -> (tensors, kwargs, exception, message)
    # (**kwargs) -> how large the operands of a gradient's terms can be, for g = 1 (they may cancel): one number for all
    # parameters, or one for each; if soft_grad one for each tensor, x first
    operand: Callable
    # (*tensors, **kwargs) -> Hardened, for quantizers on a hard grid; None for a call that has no codes
    harden: Callable | None = None
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)
    plain: dict = field(default_factory=lambda: {"bits": 4})  # arguments of an ordinary call
    parameters: Callable[[int], tuple[Tensor, ...]] = lambda P: (torch.ones(P),)  # ordinary ones, |x| about 1
    rows: tuple[int, ...] = ()  # tensors (by position) that are [P, K], a row a block, or [K] for all of x
    shared: tuple[int, ...] = ()  # tensors (by position) that have no blocks: all of x shares them
    positive: tuple[int, ...] = (1,)  # tensors whose values must be positive, else their block is NaN
    value_operand: Callable = lambda **kwargs: 1.0  # of a soft forward: how large its terms are, |x| about 1
    soft_forward: bool | Callable = False  # or (**kwargs) -> whether this call's forward is soft
    kernels: str = ""  # the op on whose kernels it runs, if it has none of its own
    soft_grad: bool = False
    # (tensors, kwargs) -> whether Triton's interpreter takes the sample too: it is slow
    interpreted: Callable = lambda tensors, kwargs: True

    def __repr__(self) -> str:
        return self.name

    def backends(self) -> tuple[str, ...]:
        return backends.backends_of(self.kernels or self.name)

    def samples_on(self, backend: str, device: str, dtype: torch.dtype) -> Iterator:
        """The samples that this backend is judged by."""
        every = self.samples(device, dtype)
        return (s for s in every if self.interpreted(*s)) if (backend, device) == ("triton", "cpu") else every

    def refusal(self, backend: str, x: Tensor) -> str | None:
        """Why ``backend`` cannot run it on x, or None."""
        return backends.refusal(self.kernels or self.name, backend, x)

    def operands(self, tensors: Sequence[Tensor], kwargs: dict) -> list[float]:
        """``operand`` of each tensor; of x only where its gradient is soft."""
        found = self.operand(**kwargs)
        found = [found] * (len(tensors) - 1) if isinstance(found, (int, float)) else list(found)
        return found if len(found) == len(tensors) else [0.0, *found]

    def blocks(self, tensors: Sequence[Tensor], i: int) -> int:
        """How many equal blocks of x parameter i splits it into."""
        for_all = i in self.shared or (i in self.rows and tensors[i].dim() == 1)
        return 1 if for_all else tensors[i].shape[0]

    def is_soft(self, kwargs: dict) -> bool:
        """Whether the forward of this call is soft."""
        return self.soft_forward(**kwargs) if callable(self.soft_forward) else self.soft_forward


def block_samples(
    device: str,
    dtype: torch.dtype,
    variants: Sequence[dict],
    unit: float | Callable[[int, torch.Generator], tuple[Tensor, ...]],
) -> Iterator[tuple[tuple[Tensor, ...], dict]]:
    """x of every awkward shape and layout, |x| about 1, with parameters of P blocks; for each kwargs.

    unit: the parameter is about this large; or a function (P, generator) -> parameters.
    """
    g = torch.Generator().manual_seed(0)

    def x(*shape):
        return torch.randn(shape, generator=g).to(device, dtype)

    def p(count):
        if callable(unit):
            return tuple(q.to(device) for q in unit(count, g))
        return (((torch.rand(count, generator=g) + 0.5) * unit).to(device),)

    for shape, P in [((0,), 1), ((1,), 1), ((7,), 1), ((15,), 5), ((16,), 2), ((17,), 17), ((1024,), 1), ((1025,), 1),
                     ((3, 5, 129), 1), ((3, 5, 129), 3), ((33, 31), 33), ((4, 96), 12), ((8192,), 1), ((8193,), 1),
                     ((2, 8191), 2), ((3, 16400), 3)]:  # fmt: skip
        for kwargs in variants if shape in [(0,), (1025,), (4, 96)] else variants[:1]:
            yield (x(*shape), *p(P)), kwargs
    kwargs = variants[0]
    yield (x(64, 48).t(), *p(1)), kwargs  # permuted
    yield (x(64, 48).t(), *p(48)), kwargs
    yield (x(64, 48)[:, 5:29], *p(64)), kwargs  # odd offset: strides and alignment
    yield (x(6, 5, 4, 3).to(memory_format=torch.channels_last), *p(1)), kwargs
    yield (x(6, 5, 4, 3).to(memory_format=torch.channels_last), *p(6)), kwargs
    yield (x(6, 5, 4, 3).to(memory_format=torch.channels_last), *p(30)), kwargs  # P that channels_last cannot carry
    yield (x(2, 3, 2, 3, 4).to(memory_format=torch.channels_last_3d), *p(2)), kwargs
    yield (x(40, 5)[:, :1].expand(40, 5), *p(1)), kwargs  # stride 0


def common_errors(name: str, second: str, valid: dict, rest: tuple[Tensor, ...] = ()) -> Iterator:
    """What every block-wise op refuses; second: its first parameter, rest: valid further ones of one block."""
    x, p = torch.randn(4), torch.tensor([0.1])
    reshape = f"; use {second}.reshape(1)"

    def case(x, p, exception, message, **kwargs):
        return (x, p, *rest), valid | kwargs, exception, message

    shape = rf"{name}: {second} must have shape \[P\], got "
    yield case(x, p.reshape(()), ValueError, shape + re.escape("[]" + reshape))
    yield case(x, p.reshape(1, 1), ValueError, shape + r"\[1, 1\]")
    yield case(x, torch.ones(3), ValueError, r"P must divide x.numel\(\)=4, got P=3")
    yield case(x, torch.ones(1, dtype=torch.int64), TypeError, f"{second} must be a float tensor, got torch.int64")
    yield case(x.int(), p, TypeError, "x must be a float tensor, got torch.int32")
    yield case(3.0, p, TypeError, "x must be a Tensor, got float")
    yield case(x.to_sparse(), p, TypeError, "x must be a dense tensor, of layout torch.strided, got torch.sparse_coo")
    yield case(x, 0.1, TypeError, rf"{second} must be a Tensor of shape \[P\], got float")
    yield case(x, p.to("meta"), ValueError, "must be on one device, got cpu and meta")
    if "bits" in valid:
        yield case(x, p, ValueError, "bits must be between . and 8 .*, got 9", bits=9)
        yield case(x, p, TypeError, "bits must be an int, got float", bits=4.0)
        yield case(x, p, TypeError, "bits must be an int, got bool", bits=True)
    refused = "backend='cpu' cannot run: x is torch.float64, needs torch.float32"
    yield case(x.double(), p, NotImplementedError, refused, backend="cpu")
    yield case(x, p, NotImplementedError, "backend='cuda' cannot run: ", backend="cuda")
    yield case(x, p, NotImplementedError, "backend='abacus' cannot run: no such backend", backend="abacus")


def ties(device: str, dtype: torch.dtype, step: float) -> torch.Tensor:
    """Every multiple of step / 2 in and around the grid."""
    return (torch.arange(-40, 41) * (step / 2)).to(device, dtype)
