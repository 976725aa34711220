"""post against the nearest of K levels by argmin over N x K, and by binary search."""

from collections.abc import Iterator

import torch
from torch import Tensor

import qkernels as qk

from .subject import Subject, one, ste


def eager_post_argmin(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest of K levels by an N x K distance tensor, as the papers' code does it."""
    levels = qk.post_levels(bits).to(w.device)
    u = (w / scale[:, None].to(torch.float32)).clamp(-1, 1)
    return (ste(levels[(u.detach()[..., None] - levels).abs().argmin(-1)], u) * scale[:, None]).to(w.dtype)


def eager_post_bucketize(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest of K levels by binary search over their midpoints."""
    levels = qk.post_levels(bits).to(w.device)
    u = (w / scale[:, None].to(torch.float32)).clamp(-1, 1)
    return (ste(levels[torch.bucketize(u.detach(), (levels[1:] + levels[:-1]) / 2)], u) * scale[:, None]).to(w.dtype)


def subjects(quick: bool) -> Iterator[Subject]:
    for name, eager in (("argmin over N x K", eager_post_argmin), ("bucketize", eager_post_bucketize)):
        for bits in (4,) if quick else (2, 3, 4):
            yield Subject(
                "post", f"against {name}", bits,
                lambda x, p, b=bits: qk.post(x, p, bits=b),
                lambda x, p, b=bits, f=eager: f(x, p, b), one(1.0), heavy=name.startswith("argmin"),
            )  # fmt: skip
