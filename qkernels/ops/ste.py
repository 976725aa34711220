"""Straight-through pieces of references: forward value of the hard function, backward of the smooth one."""

import torch
from torch import Tensor


def ste_round(x: Tensor) -> Tensor:
    """Round half to even, never -0; the gradient passes unchanged. Exact: round(x) - x has no rounding error."""
    return x + (x.round() - x).detach()


def ste_replace(x: Tensor, value: Tensor) -> Tensor:
    """``value`` forward, bit for bit; the gradient goes to x unchanged."""
    return _Replace.apply(x, value.detach())


def clamp(x: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """``x.clamp(low, high)``; the gradient passes where low <= x <= high, the bounds among them. (That of
    torch's own clamp does not pass there in torch 2.15.) 0 where x is NaN."""
    return torch.where((x >= low) & (x <= high), x, x.detach().clamp(low, high))


def scale_grad(x: Tensor, factor: float | None) -> Tensor:
    """``x`` forward; its gradient is multiplied by ``factor`` (None: 1). LSQ (arXiv:1902.08153), section 2.2."""
    return x if factor is None else _ScaleGrad.apply(x, factor)


def clamp_pulling_back(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """``x.clamp(low, high)``; where x was clamped, of the gradient only what a descent follows back into the range.

    A parameter that drifted out is thus held, and not lost: plain clamp would leave it without a gradient for ever.
    """
    return _ClampPullingBack.apply(x, low, high)


class _ClampPullingBack(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, low, high):
        return torch.minimum(torch.maximum(x, low), high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, low, high = ctx.saved_tensors
        return torch.where(((x < low) & (g > 0)) | ((x > high) & (g < 0)), 0.0, g), None, None


class _Replace(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, value):
        return value.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, g):
        return g, None


class _ScaleGrad(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, factor):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor, None
