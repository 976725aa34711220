"""soft_assign against the softmax over an N x K tensor of distances."""

from collections.abc import Iterator

import torch
from torch import Tensor

import qkernels as qk

from .subject import Subject


def eager_soft_assign(x: Tensor, levels: Tensor, temperature: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    pi = torch.softmax(-temperature * (wide[..., None] - levels) ** 2, dim=-1)  # x.numel() * K values
    return (pi * levels).sum(-1).to(x.dtype)


def codebook(K: int):
    """K levels over three deviations of x to each side; a neighbor one spacing away weighs e**-4 of the nearest."""

    def parameters():
        levels = torch.linspace(-1.5, 1.5, K)
        return levels, torch.tensor([4 / (levels[1] - levels[0]).item() ** 2])

    return parameters


def subjects(quick: bool) -> Iterator[Subject]:
    for bits in (3, 4) if quick else (2, 3, 4, 6):
        yield Subject(
            "soft_assign", f"softmax over N x {1 << bits}", bits, qk.soft_assign, eager_soft_assign,
            codebook(1 << bits), soft=True,
        )  # fmt: skip
