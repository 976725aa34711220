"""daq against the soft argmax that its authors' release builds from eager PyTorch."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

import qkernels as qk

from .subject import Subject


class _Distance(torch.autograd.Function):
    """|d|, with the derivative +1 at 0."""

    @staticmethod
    def forward(ctx, d):
        ctx.save_for_backward(d)
        return d.abs()

    @staticmethod
    def backward(ctx, g):
        (d,) = ctx.saved_tensors
        return torch.where(d >= 0, g, -g)


def eager_daq(
    x: Tensor, lower: Tensor, upper: Tensor, scale: Tensor, bits: int, gamma: float = 2.0, sigma: float = 1.0
) -> Tensor:
    """Scores of the two codes around q, a kernel around the nearer, a softmax with a temperature, and rescaling."""
    n = 2**bits - 1
    q = ((x.float() - lower[:, None]) / (upper - lower)[:, None]).clamp(0, 1) * n
    floor = q.detach().floor()
    d = q - floor
    below, above = torch.exp(-_Distance.apply(d)), torch.exp(-_Distance.apply(d - 1))
    far, near_above = math.exp(-(sigma**-2)), (above > below).detach()
    below, above = below * torch.where(near_above, far, 1.0), above * torch.where(near_above, 1.0, far)
    scores = torch.stack([below, above], -1)
    p = torch.softmax(gamma / (below - above).abs().detach()[..., None] * scores, -1)
    shift = 1 / math.expm1(gamma)
    code = floor - shift * p[..., 0] + (1 + shift) * p[..., 1]
    return ((2 * code - n) / n * scale[:, None]).to(x.dtype)


def parameters() -> tuple[Tensor, Tensor, Tensor]:
    """The bounds 3 standard deviations away."""
    return torch.tensor([-1.5]), torch.tensor([1.5]), torch.tensor([1.0])


def subjects(quick: bool) -> Iterator[Subject]:
    for bits in (4,) if quick else (1, 2, 4, 8):
        yield Subject(
            "daq", "against soft argmax", bits,
            lambda x, *p, b=bits: qk.daq(x, *p, bits=b),
            lambda x, *p, b=bits: eager_daq(x, *p, b),
            parameters, soft=True,
        )  # fmt: skip
