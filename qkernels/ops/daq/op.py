"""DAQ: distance-aware quantization between two learned bounds (Kim et al. 2021, arXiv:2108.06983)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops import blocks
from qkernels.ops.function import call, is_exporting, once_differentiable
from qkernels.ops.grids import IntegerGrid, positive

from . import reference

_fwd = backends.define(
    "daq_fwd(Tensor x, Tensor lower, Tensor upper, Tensor scale, int n, bool signed, str backend) -> Tensor",
    fake=lambda x, lower, upper, scale, n, signed, backend: torch.empty_like(x),
    package=__package__,
    reference=lambda x, lower, upper, scale, n, signed: reference.daq(x, lower, upper, scale, n, signed, 2.0, 1.0),
)
_bwd = backends.define(
    "daq_bwd(Tensor g, Tensor x, Tensor lower, Tensor upper, Tensor scale, int n, bool signed, float amplitude, "
    "float base, str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=lambda g, x, lower, upper, scale, n, signed, amplitude, base, backend: (
        torch.empty_like(x), torch.empty_like(lower), torch.empty_like(upper), torch.empty_like(scale),
    ),
    package=__package__,
)  # fmt: skip


class _DAQ(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, lower, upper, scale, n, signed, amplitude, base, backend):
        return _fwd(x.contiguous(), lower.contiguous(), upper.contiguous(), scale.contiguous(), n, signed, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, lower, upper, scale, ctx.n, ctx.signed, ctx.amplitude, ctx.base, ctx.backend = inputs
        ctx.save_for_backward(x, lower, upper, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        tensors = [t.contiguous() for t in (g, *ctx.saved_tensors)]
        return *_bwd(*tensors, ctx.n, ctx.signed, ctx.amplitude, ctx.base, ctx.backend), None, None, None, None, None


def daq(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    scale: Tensor | None = None,
    *,
    bits: int,
    signed: bool = True,
    gamma: float = 2.0,
    sigma: float | None = None,
    symmetric: bool = False,
    eps: float = 0.0,
    backend: str | None = None,
) -> Tensor:
    """The nearest of N + 1 equal steps between two learned bounds, with the gradient of a soft assignment.

    With N = 2**bits - 1 (symmetric: 2**bits - 2) and q = clamp((x - lower) * (N / (upper - lower)), 0, N):
        Q = floor(q) + [q - floor(q) > 1/2]
        y = (2 Q - N) * (scale / N)  in [-scale, scale], unsigned:  Q * (scale / N)  in [0, scale]
    one float32 product of an integer and a number per block. Where lower <= x <= upper, dy/dq is not 1 but
        G = A coth(z / 2),  A = gamma / (2 sinh gamma),  z = 1 / sigma**2 + |1 - 2 (q - floor(q))|
    larger in the middle between two codes than on them; so, with c = 2 G scale / (upper - lower), unsigned half that,
        dx = g c    dlower = sum -g c (upper - x) / (upper - lower)    dupper = sum -g c (x - lower) / (upper - lower)
    which clipped elements do not enter; dscale = sum g y / scale, of all.

    This is what autograd makes of the authors' soft argmax over the codes floor(q) and floor(q) + 1 with their
    temperature controller, whose forward is the code itself: checked against that graph in float64 (tests/test_daq.py).
    Bounds, grids, gamma = 2, sigma and the derivative of |q - floor(q)| at 0, which counts as +1, are those of the
    authors' release (cvlab-yonsei/DAQ), and symmetric the grid of their later code (cvlab-yonsei/YonseiAutoML). The
    release multiplies a layer's output by its learned scale; here it is the grid's.

    Args:
        x: any shape, float32 | float16 | bfloat16; computed in float32 whatever the dtype.
        lower, upper: [P], float, in units of x, finite; x splits row-major into P equal blocks. upper <= lower gives
            NaN there.
        scale: [P], float, positive: the largest |y|; None is 1. scale <= 0 gives NaN there.
        bits: 1 to 8 (symmetric: 2 to 8).
        signed: whether the grid has negative levels. Only a symmetric grid has 0 between them.
        gamma: 0 < gamma <= 80; a factor A on the gradient of x and the bounds, nothing else.
        sigma: 0.01 < sigma <= 100: how much steeper the gradient is between two codes; None is the release's 1.0
            (signed) or 2.0 (unsigned).
        symmetric: a signed grid with an odd number of levels. ``daq(x, -s, s, s, symmetric=True)`` is the variant with
            a learned scale and no other bounds.
        eps: 0 <= eps <= 1: the paper's constant beside the gap of the scores in the temperature, which the release has
            not. Above 0, y misses the levels by up to 2 eps of a step or so, and it runs on the reference only: for
            comparison, not for training.
        backend: "reference" | "cpu" | "cuda" | "triton"; None picks the fastest that can run. An exported graph chooses
            when it runs, and has no gradients here.

    Returns:
        Tensor like x; contiguous, or channels_last where x is. A NaN stays where it was: its dx is 0, its block's other
        gradients NaN.

    Raises:
        TypeError: x or a parameter is not a float tensor, bits not an int.
        ValueError: bits, gamma, sigma or eps out of range, symmetric but not signed, parameters not [P], P does not
            divide x.numel(), two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    n = largest_code("daq", bits, signed, symmetric)
    shape = checked_shape("daq", gamma, sigma, signed)
    if not 0 <= eps <= 1:
        raise ValueError(f"daq: eps must be between 0 and 1, got {eps:g}")
    if scale is None:
        scale = torch.ones(1, dtype=torch.float32, device=x.device if isinstance(x, Tensor) else None)
    x, (lower, upper, scale), restore = blocks.prepare("daq", x, lower=lower, upper=upper, scale=scale)
    if not eps and backend is None and is_exporting():  # a graph for inference, on whatever device it will run
        return restore(_fwd(*(t.contiguous() for t in (x, lower, upper, scale)), n, signed, "auto"))
    if eps and backend is None:
        backend = "reference"
    backend = backends.resolve("daq", x, backend)
    if backend == "reference":
        return restore(reference.daq(x, lower, upper, scale, n, signed, *shape, eps))
    if eps:
        raise NotImplementedError(f"daq: {backend} cannot run: eps must be 0 but on the reference, got {eps:g}")
    return restore(call(_DAQ, _DAQ.forward, x, lower, upper, scale, n, signed, *constants(*shape), backend))


def fixed(
    lower: Tensor, upper: Tensor, scale: Tensor, *, bits: int, signed: bool = True, symmetric: bool = False
) -> Callable[[Tensor], Tensor]:
    """``daq`` with these parameters, float32 [P], as one call of the op: for a contiguous x, without gradients."""
    n = largest_code("daq", bits, signed, symmetric)
    parameters = tuple(p.detach() for p in (lower, upper, scale))
    return lambda x: _fwd(x, *parameters, n, signed, backends.resolve("daq", x, None))


def integer_grid(
    lower: Tensor,
    upper: Tensor,
    scale: Tensor,
    *,
    bits: int,
    signed: bool = True,
    symmetric: bool = False,
    name: str = "daq",
) -> IntegerGrid:
    """The integers that ``daq`` with these parameters, float32 [P], rounds to: 2 Q - N, Q - N / 2 (symmetric) or Q.

    name: who asks, for errors.

    Raises:
        TypeError, ValueError: as ``daq``; the integers do not fit 8 bits.
    """
    n = largest_code(name, bits, signed, symmetric, 8 - integer_bits(0, signed, symmetric))
    step = positive(scale) * (1 / n)  # exactly daq's
    if not signed:
        return IntegerGrid(step, 0, n, lower, upper)
    by = 1 if symmetric else 2
    return IntegerGrid(step * (2 // by), -n * by // 2, n * by // 2, lower, upper, by)


def integer_bits(bits: int, signed: bool, symmetric: bool) -> int:
    """How many bits the integers of ``integer_grid`` need: those of a grid without 0 are odd."""
    return bits + (signed and not symmetric)


def harden(
    x: Tensor,
    lower: Tensor,
    upper: Tensor,
    scale: Tensor | None = None,
    *,
    bits: int,
    signed: bool = True,
    symmetric: bool = False,
    eps: float = 0.0,
) -> reference.Hardened:
    """The codes, levels and scale of ``daq(x, lower, upper, scale)``; see ``qkernels.harden``.

    Raises:
        ValueError: upper is not above lower; eps is not 0, where y is not on the levels.
    """
    if eps:
        raise ValueError(f"daq: eps must be 0 for y to be on the levels, got {eps:g}")
    n = largest_code("daq", bits, signed, symmetric)
    scale = torch.ones(1, dtype=torch.float32, device=x.device) if scale is None else scale
    _, (lower, upper, scale), _ = blocks.prepare("daq", x, lower=lower, upper=upper, scale=scale)
    if not (upper > lower).all():
        bad = int((~(upper > lower)).nonzero()[0])
        pair = f"{upper[bad].item():g} and {lower[bad].item():g} in block {bad}"
        raise ValueError(f"daq: upper must be above lower, got {pair}")
    return reference.harden(x, lower, upper, scale, n, signed)


def largest_code(name: str, bits: int, signed: bool, symmetric: bool, most: int = 8) -> int:
    """N: codes are 0 ... N. most: bits that are allowed."""
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{name}: bits must be an int, got {type(bits).__name__}")
    if symmetric and not signed:
        raise ValueError(f"{name}: a symmetric grid must be signed, got signed={signed}")
    if not 1 + symmetric <= bits <= most:
        kind = "symmetric" if symmetric else "signed" if signed else "unsigned"
        raise ValueError(f"{name}: bits must be between {1 + symmetric} and {most} ({kind}), got {bits}")
    return 2**bits - (2 if symmetric else 1)


def checked_shape(name: str, gamma: float, sigma: float | None, signed: bool) -> tuple[float, float]:
    """(gamma, sigma) of the gradient, checked; sigma None is the release's."""
    sigma = (1.0 if signed else 2.0) if sigma is None else sigma
    for key, value, low, high in (("gamma", gamma, 0.0, 80.0), ("sigma", sigma, 0.01, 100.0)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name}: {key} must be a number, got {type(value).__name__}")
        if not low < value <= high:  # NaN too
            raise ValueError(f"{name}: {key} must be above {low:g} and at most {high:g}, got {value:g}")
    return float(gamma), float(sigma)


def constants(gamma: float, sigma: float) -> tuple[float, float]:
    """(A, T) of csrc/daq/daq.h."""
    return reference.amplitude(gamma), math.tanh(0.5 * sigma**-2)
