"""LSQ fake quantization: round to a learned step size (Esser et al. 2020, arXiv:1902.08153)."""

from collections.abc import Callable

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops import blocks
from qkernels.ops.function import call, is_exporting, once_differentiable
from qkernels.ops.grids import IntegerGrid

from . import reference

_fwd = backends.define(
    "lsq_fwd(Tensor x, Tensor step, int qmin, int qmax, str backend) -> Tensor",
    fake=lambda x, step, qmin, qmax, backend: torch.empty_like(x),
    package=__package__,
    reference=reference.lsq,
)
_bwd = backends.define(
    "lsq_bwd(Tensor g, Tensor x, Tensor step, int qmin, int qmax, str backend) -> (Tensor, Tensor)",
    fake=lambda g, x, step, qmin, qmax, backend: (torch.empty_like(x), torch.empty_like(step)),
    package=__package__,
)


class _LSQ(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, step, qmin, qmax, grad_scale, backend):
        return _fwd(x.contiguous(), step.contiguous(), qmin, qmax, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, step, ctx.qmin, ctx.qmax, ctx.grad_scale, ctx.backend = inputs
        ctx.save_for_backward(x, step)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, step = ctx.saved_tensors
        dx, ds = _bwd(g.contiguous(), x.contiguous(), step.contiguous(), ctx.qmin, ctx.qmax, ctx.backend)
        return dx, ds if ctx.grad_scale is None else ds * ctx.grad_scale, None, None, None, None


def lsq(
    x: Tensor,
    step: Tensor,
    *,
    bits: int,
    signed: bool = True,
    grad_scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``round(clamp(x / step, qmin, qmax)) * step``: the nearest of 2**bits multiples of a learned step, half to even.

    signed: ``qmin, qmax = -2**(bits-1), 2**(bits-1) - 1``; unsigned: ``0, 2**bits - 1``.
    Gradients (arXiv:1902.08153, equations 3 and 5), with v = x / step:
        dx    = g            where qmin <= v <= qmax, else 0
        dstep = sum over the block of  g * (round(v) - v  inside, the clipped code outside)  * grad_scale

    Args:
        x: any shape, float32 | float16 | bfloat16; computed in float32 whatever the dtype.
        step: [P], float, in units of x, positive; x splits row-major into P equal blocks. step <= 0 gives NaN there.
        bits: 2 to 8 (unsigned: 1 to 8).
        signed: whether the grid has negative levels.
        grad_scale: factor on step's gradient; None is 1. The paper's is 1 / sqrt(L * qmax).
        backend: "reference" | "cpu" | "cuda" | "triton"; None picks the fastest that can run. An exported graph chooses
            when it runs, and has no gradients here.

    Returns:
        Tensor like x; contiguous, or channels_last where x is. A NaN stays where it was: its dx is 0, its block's dstep
        NaN.

    Raises:
        TypeError: x or step is not a float tensor, bits not an int.
        ValueError: bits out of range, step not [P], P does not divide x.numel(), two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    qmin, qmax = blocks.int_range("lsq", bits, signed)
    x, (step,), restore = blocks.prepare("lsq", x, step=step)
    if backend is None and is_exporting():  # a graph for inference, on whatever device it will run
        return restore(_fwd(x.contiguous(), step.contiguous(), qmin, qmax, "auto"))
    backend = backends.resolve("lsq", x, backend)
    if backend == "reference":
        return restore(reference.lsq(x, step, qmin, qmax, grad_scale))
    return restore(call(_LSQ, _LSQ.forward, x, step, qmin, qmax, grad_scale, backend))


def fixed(step: Tensor, *, bits: int, signed: bool = True) -> Callable[[Tensor], Tensor]:
    """``lsq`` with this step, float32 [P], as one call of the op: for a contiguous x, without gradients."""
    qmin, qmax = blocks.int_range("lsq", bits, signed)
    step = step.detach()
    return lambda x: _fwd(x, step, qmin, qmax, backends.resolve("lsq", x, None))


def integer_grid(step: Tensor, *, bits: int, signed: bool = True, name: str = "lsq") -> IntegerGrid:
    """The integers that ``lsq`` with this step, float32 [P], rounds to. name: who asks, for errors."""
    return IntegerGrid(step, *blocks.int_range(name, bits, signed))


def harden(x: Tensor, step: Tensor, *, bits: int, signed: bool = True) -> reference.Hardened:
    """The codes, levels and scale of ``lsq(x, step)``; see ``qkernels.harden``."""
    qmin, qmax = blocks.int_range("lsq", bits, signed)
    _, (step,), _ = blocks.prepare("lsq", x, step=step)
    return reference.harden(x, step, qmin, qmax)
