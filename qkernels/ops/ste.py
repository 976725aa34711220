"""Straight-through pieces of references: forward value of the hard function, backward of the smooth one."""

import torch
from torch import Tensor


def ste_round(x: Tensor) -> Tensor:
    """Round half to even, never -0; the gradient passes unchanged. Exact: round(x) - x has no rounding error."""
    return x + (x.round() - x).detach()


def ste_replace(x: Tensor, value: Tensor) -> Tensor:
    """``value`` forward, bit for bit; the gradient goes to x unchanged."""
    return _Replace.apply(x, value.detach())


def scale_grad(x: Tensor, factor: float | None) -> Tensor:
    """``x`` forward; its gradient is multiplied by ``factor`` (None: 1). LSQ (arXiv:1902.08153), section 2.2."""
    return x if factor is None else _ScaleGrad.apply(x, factor)


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
