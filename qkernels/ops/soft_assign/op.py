"""Soft assignment: every value drawn to learned levels, the nearer the more."""

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops import blocks
from qkernels.ops.function import call, is_exporting, once_differentiable

from . import reference

_fwd = backends.define(
    "soft_assign_fwd(Tensor x, Tensor levels, Tensor temperature, bool hard, str backend) -> Tensor",
    fake=lambda x, levels, temperature, hard, backend: torch.empty_like(x),
    package=__package__,
    reference=reference.soft_assign,
)
_bwd = backends.define(
    "soft_assign_bwd(Tensor g, Tensor x, Tensor levels, Tensor temperature, str backend) -> (Tensor, Tensor, Tensor)",
    fake=lambda g, x, levels, temperature, backend: tuple(torch.empty_like(t) for t in (x, levels, temperature)),
    package=__package__,
)


class _SoftAssign(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, levels, temperature, hard, backend):
        return _fwd(x.contiguous(), levels.contiguous(), temperature.contiguous(), hard, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, levels, temperature, _, ctx.backend = inputs
        ctx.save_for_backward(x, levels, temperature)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        tensors = (t.contiguous() for t in (g, *ctx.saved_tensors))
        return *_bwd(*tensors, ctx.backend), None, None


def soft_assign(
    x: Tensor, levels: Tensor, temperature: Tensor, *, hard: bool = False, backend: str | None = None
) -> Tensor:
    """``sum_k pi_k q_k`` with ``pi = softmax_k(-t (x - q_k)**2)``: x drawn to learned levels q, the nearer the more.

    t is an inverse temperature, in units of 1 / x**2: as it grows, y becomes the nearest level. With a = g pi:
        dx       = 2t * sum_k a_k (q_k - y)**2                     (2t g times the variance of q under pi)
        dlevel_k = sum over the block of  a_k * (1 + 2t (q_k - y) (x - q_k))
        dt       = sum over the block of  -sum_k a_k (q_k - y) (x - q_k)**2
    A level without weight (below 2**-64 of the nearest one's) gets gradient 0 and keeps its value. hard=True gives the
    nearest level itself, with the gradients of the soft function (straight through); half way belongs to the lower
    level, and half way is the float32 ``(q_k + q_k+1) * 0.5``.

    The formula is the softmax over learned levels of DQ-style quantizers (arXiv:2012.13762), whose abstract alone was
    at hand: that levels are learned by gradient descent is verified, the distance in the softmax and the
    straight-through gradient are inferred. The gradients are derived, and checked against float64 autograd.

    Args:
        x: any shape, float32 | float16 | bfloat16; computed in float32 whatever the dtype.
        levels: [K] for all of x, or [P, K], one row for each of P equal blocks of x in row-major order; float, K of 2
            to 256, finite, ascending. The order is not checked: where it is wrong, so is what counts as nearest, and
            the result is unspecified.
        temperature: [1] or [P], float, the inverse temperature t, positive. t <= 0 gives NaN in its block.
        hard: whether y is the nearest level.
        backend: "reference" | "cpu" | "cuda" | "triton"; None picks the fastest that can run. An exported graph chooses
            when it runs, and has no gradients here.

    Returns:
        Tensor like x; contiguous, or channels_last where x is. +-Inf gives the last or first level, with gradient 0 to
        x. A NaN stays where it was: its dx is 0, its block's other gradients NaN.

    Raises:
        TypeError: a tensor is not a float tensor, hard not a bool.
        ValueError: levels not [K] or [P, K], K out of range, temperature not [1] or [P], P does not divide x.numel(),
            two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    if not isinstance(hard, bool):
        raise TypeError(f"soft_assign: hard must be a bool, got {type(hard).__name__}")
    x, levels, (temperature,), restore = blocks.prepare_levels("soft_assign", x, levels, temperature=temperature)
    if backend is None and is_exporting():  # a graph for inference, on whatever device it will run
        return restore(_fwd(x.contiguous(), levels.contiguous(), temperature.contiguous(), hard, "auto"))
    backend = backends.resolve("soft_assign", x, backend)
    if backend == "reference":
        return restore(reference.soft_assign(x, levels, temperature, hard))
    return restore(call(_SoftAssign, _SoftAssign.forward, x, levels, temperature, hard, backend))


def harden(x: Tensor, levels: Tensor, temperature: Tensor, *, hard: bool = False) -> reference.Hardened:
    """The codes, levels and scale of ``soft_assign(x, levels, temperature, hard=True)``; see ``qkernels.harden``."""
    if not hard:
        raise ValueError("soft_assign: a soft forward has no codes, got hard=False")
    _, levels, _, _ = blocks.prepare_levels("soft_assign", x, levels, temperature=temperature)
    if levels.shape[0] > 1 and not (levels == levels[:1]).all():
        raise ValueError(f"soft_assign: codes need one codebook for all of x, got {levels.shape[0]} of them")
    return reference.harden(x, levels[0])
