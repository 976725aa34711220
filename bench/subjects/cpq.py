"""cpq against the N x K tensor of category probabilities, as written from the papers; also with DropBits."""

from collections.abc import Iterator

import torch
from torch import Tensor

import qkernels as qk

from .subject import Subject


def _probabilities(x: Tensor, step: Tensor, sigma: Tensor, n: Tensor) -> Tensor:
    """[..., K]; sigmoid differences, with what keeps the far tails from 0 / 0 (the papers' own code adds the like)."""
    edges = torch.cat([n - 0.5, n[-1:] + 0.5])
    cdf = torch.sigmoid((edges * step - x[..., None].float()) / sigma)
    return cdf.diff(dim=-1) + 1e-20


def _codes(x: Tensor, bits: int, symmetric: bool = False) -> Tensor:
    return torch.arange(symmetric - 2.0 ** (bits - 1), 2.0 ** (bits - 1), device=x.device)


def eager_cpq(x: Tensor, step: Tensor, sigma: Tensor, bits: int, full: bool, truncate: bool) -> Tensor:
    n = _codes(x, bits)
    p = _probabilities(x, step, sigma, n)
    if truncate:
        p = p / p.sum(-1, keepdim=True)
    # the nearest code: an argmax over the computed probabilities would flip sides in the far tail
    best = torch.nn.functional.one_hot(((x.float() / step).round().clamp(n[0], n[-1]) - n[0]).long(), len(n)).float()
    p = p if full else p * best
    return (((p - p.detach()) + best) * (n * step)).sum(-1).to(x.dtype)


def eager_dropbits(x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int) -> Tensor:
    n = _codes(x, bits, symmetric=True)
    level = torch.ceil(torch.log2(n.abs() + 1)).long()
    q = torch.cat([torch.ones_like(keep[:1]), keep])[level] * _probabilities(x, step, sigma, n)
    q = q / q.sum(-1, keepdim=True)
    # beyond the grid the largest code is chosen by hand, for the same reason
    last = len(n) - 1
    index = torch.where(x / step > n[-1], last, torch.where(x / step < n[0], 0, q.detach().argmax(-1)))
    best = torch.nn.functional.one_hot(index, len(n)).float()
    return ((q * best - (q * best).detach() + best) * (n * step)).sum(-1).to(x.dtype)


def subjects(quick: bool) -> Iterator[Subject]:
    def parameters(bits):
        return lambda: (torch.tensor([3.0 / 2**bits]), torch.tensor([1.0 / 2**bits]))

    settings = [(4, "full", False), (4, "argmax", True)]
    if not quick:
        settings += [(2, "argmax", False), (8, "argmax", False), (8, "full", False)]
    for bits, estimator, truncate in settings:
        yield Subject(
            "cpq", estimator + ", truncated" * truncate, bits,
            lambda x, s, d, b=bits, e=estimator, t=truncate: qk.cpq(x, s, d, bits=b, estimator=e, truncate=t),
            lambda x, s, d, b=bits, e=estimator, t=truncate: eager_cpq(x, s, d, b, e == "full", t),
            parameters(bits), soft=True, slow=True,
        )  # fmt: skip
    yield Subject(
        "dropbits", "bitwise gates", 4,
        lambda x, s, d, z: qk.cpq(x, s, d, z, bits=4),
        lambda x, s, d, z: eager_dropbits(x, s, d, z, 4),
        lambda: (*parameters(4)(), torch.tensor([0.9, 0.8, 0.7])), soft=True, slow=True,
    )  # fmt: skip
