"""CPQ fake quantization: cluster-promoting quantization (Lee et al. 2021, arXiv:2109.02100), with DropBits."""

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops import blocks
from qkernels.ops.function import call

from . import reference

_fwd = backends.define(
    "cpq_fwd(Tensor x, Tensor step, Tensor sigma, int qmin, int qmax, str backend) -> Tensor",
    fake=lambda x, step, sigma, qmin, qmax, backend: torch.empty_like(x),
    package=__package__,
    reference=reference.cpq,
)
_bwd = backends.define(
    "cpq_bwd(Tensor g, Tensor x, Tensor step, Tensor sigma, int qmin, int qmax, bool full, bool truncate, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda g, x, step, sigma, *rest: (torch.empty_like(x), torch.empty_like(step), torch.empty_like(sigma)),
    package=__package__,
)


class _CPQ(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, step, sigma, qmin, qmax, full, truncate, backend):
        return _fwd(x.contiguous(), step.contiguous(), sigma.contiguous(), qmin, qmax, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, step, sigma, *ctx.options = inputs
        ctx.save_for_backward(x, step, sigma)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        grads = _bwd(g.contiguous(), *(t.contiguous() for t in ctx.saved_tensors), *ctx.options)
        return *grads, None, None, None, None, None


def cpq(
    x: Tensor,
    step: Tensor,
    sigma: Tensor,
    *,
    bits: int,
    signed: bool = True,
    symmetric: bool = False,
    estimator: str = "argmax",
    truncate: bool = False,
    backend: str | None = None,
) -> Tensor:
    """TODO"""
    qmin, qmax = grid("cpq", bits, signed, symmetric)
    full = _full("cpq", estimator, truncate)
    x, (step, sigma), restore = blocks.prepare("cpq", x, step=step, sigma=sigma)
    if backend is None and torch.compiler.is_exporting():  # a graph for inference, on whatever device it will run
        return restore(_fwd(x.contiguous(), step.contiguous(), sigma.contiguous(), qmin, qmax, "auto"))
    backend = backends.resolve("cpq", x, backend)
    if backend == "reference":
        return restore(reference.cpq(x, step, sigma, qmin, qmax, full, truncate))
    return restore(call(_CPQ, _CPQ.forward, x, step, sigma, qmin, qmax, full, truncate, backend))


def harden(
    x: Tensor, step: Tensor, sigma: Tensor, *, bits: int, signed: bool = True, symmetric: bool = False
) -> reference.Hardened:
    """The codes, levels and scale of ``cpq(x, step, sigma)``; see ``qkernels.harden``."""
    qmin, qmax = grid("cpq", bits, signed, symmetric)
    _, (step, sigma), _ = blocks.prepare("cpq", x, step=step, sigma=sigma)
    return reference.harden(x, step, sigma, qmin, qmax)


def grid(name: str, bits: int, signed: bool, symmetric: bool) -> tuple[int, int]:
    """(smallest, largest) code; symmetric leaves out the most negative."""
    qmin, qmax = blocks.int_range(name, bits, signed)
    if symmetric and not signed:
        raise ValueError(f"{name}: symmetric=True must go with signed=True, got signed=False")
    return (-qmax, qmax) if symmetric else (qmin, qmax)


def _full(name: str, estimator: str, truncate: bool) -> bool:
    if estimator not in ("argmax", "full"):
        raise ValueError(f"{name}: estimator must be argmax or full, got {estimator!r}")
    if not isinstance(truncate, bool):
        raise TypeError(f"{name}: truncate must be a bool, got {type(truncate).__name__}")
    return estimator == "full"
