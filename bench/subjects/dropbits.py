"""cpq with DropBits against the N x K tensor of category probabilities, as written from the papers."""

from collections.abc import Iterator

import torch
from torch import Tensor

import qkernels as qk

from .cpq import codes, parameters, probabilities
from .subject import Subject


def eager_dropbits(x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int) -> Tensor:
    n = codes(x, bits, symmetric=True)
    level = torch.ceil(torch.log2(n.abs() + 1)).long()
    q = torch.cat([torch.ones_like(keep[:1]), keep])[level] * probabilities(x, step, sigma, n)
    q = q / q.sum(-1, keepdim=True)
    # beyond the grid the largest code is chosen by hand, for the same reason
    last = len(n) - 1
    index = torch.where(x / step > n[-1], last, torch.where(x / step < n[0], 0, q.detach().argmax(-1)))
    best = torch.nn.functional.one_hot(index, len(n)).float()
    return ((q * best - (q * best).detach() + best) * (n * step)).sum(-1).to(x.dtype)


def subjects(quick: bool) -> Iterator[Subject]:
    yield Subject(
        "dropbits", "bitwise gates", 4,
        lambda x, s, d, z: qk.cpq(x, s, d, z, bits=4),
        lambda x, s, d, z: eager_dropbits(x, s, d, z, 4),
        lambda: (*parameters(4)(), torch.tensor([0.9, 0.8, 0.7])), soft=True, slow=True,
    )  # fmt: skip
