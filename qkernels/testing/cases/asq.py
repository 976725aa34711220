"""The Case of asq."""

import torch

import qkernels as qk
from qkernels.ops.asq import reference
from qkernels.ops.blocks import int_range

from .case import Case, block_samples, common_errors, ties


def _parameters(P, g):
    step, beta = torch.rand(2, P, generator=g) + 0.5
    return 0.2 * step, beta


def samples(device, dtype):
    variants = [dict(bits=b, signed=s) for b, s in ((4, False), (2, True), (8, True), (1, False))]
    yield from block_samples(device, dtype, variants, unit=_parameters)
    for kwargs in variants:
        for beta in (1.0, 0.5):
            parameters = (torch.tensor([p], device=device) for p in (0.25 / beta, beta))
            yield (ties(device, dtype, 0.25), *parameters), kwargs | {"grad_scale": 0.125}
    if dtype != torch.float16:
        for step, beta in ((1e30, 1e-8), (1e-22, 1e-8), (1e-30, 1e8)):  # a dead adapter's beta is 1e-8
            x = torch.randn(100, generator=torch.Generator().manual_seed(2)) * step * beta * 4
            yield (x.to(device, dtype), *(torch.tensor([p], device=device) for p in (step, beta))), dict(bits=4)


def errors():
    yield from common_errors("asq", "step", {"bits": 4}, (torch.tensor([1.0]),))
    x, s = torch.randn(4), torch.tensor([0.1])
    yield (x, s, s), dict(bits=1, signed=True), ValueError, r"asq: bits must be between 2 and 8 \(signed\), got 1"
    yield (x, s, s.reshape(1, 1)), dict(bits=4), ValueError, r"asq: beta must have shape \[P\], got \[1, 1\]"
    yield (x, s, torch.ones(3)), dict(bits=4), ValueError, r"asq: P must divide x.numel\(\)=4, got P=3"
    yield (x, s, 1.0), dict(bits=4), TypeError, r"beta must be a Tensor of shape \[P\], got float"


def _reference(x, step, beta, *, bits, signed=False, grad_scale=None):
    return reference.asq(x, step, beta, *int_range("asq", bits, signed), grad_scale)


CASE = Case(
    name="asq",
    fn=qk.asq,
    reference=_reference,
    fwd_args=lambda **kwargs: (),
    bwd_args=lambda **kwargs: (),
    samples=samples,
    errors=errors,
    # beta D and step D: q - v, each up to 2**bits, times a factor that is at most 1.5
    operand=lambda bits, signed=False, grad_scale=None: [1.5 * 2.0**bits * (grad_scale or 1), 1.5 * 2.0**bits],
    parameters=lambda P: (torch.ones(P), torch.ones(P)),
    positive=(1, 2),
    kernels="lsq",
)
