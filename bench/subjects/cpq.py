"""cpq against the N x K tensor of category probabilities, as written from the papers."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import qkernels as qk

from .subject import Subject


def probabilities(x: Tensor, step: Tensor, sigma: Tensor, n: Tensor) -> Tensor:
    """[..., K]; sigmoid differences, with what keeps the far tails from 0 / 0 (the papers' own code adds the like)."""
    edges = torch.cat([n - 0.5, n[-1:] + 0.5])
    cdf = torch.sigmoid((edges * step - x[..., None].float()) / sigma)
    return cdf.diff(dim=-1) + 1e-20


def codes(x: Tensor, bits: int, symmetric: bool = False) -> Tensor:
    return torch.arange(symmetric - 2.0 ** (bits - 1), 2.0 ** (bits - 1), device=x.device)


def eager_cpq(x: Tensor, step: Tensor, sigma: Tensor, bits: int, full: bool, truncate: bool) -> Tensor:
    n = codes(x, bits)
    p = probabilities(x, step, sigma, n)
    if truncate:
        p = p / p.sum(-1, keepdim=True)
    # the nearest code: an argmax over the computed probabilities would flip sides in the far tail
    best = torch.nn.functional.one_hot(((x.float() / step).round().clamp(n[0], n[-1]) - n[0]).long(), len(n)).float()
    p = p if full else p * best
    return (((p - p.detach()) + best) * (n * step)).sum(-1).to(x.dtype)


def parameters(bits: int) -> Callable[[], tuple[Tensor, Tensor]]:
    return lambda: (torch.tensor([3.0 / 2**bits]), torch.tensor([1.0 / 2**bits]))


def subjects(quick: bool) -> Iterator[Subject]:
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
