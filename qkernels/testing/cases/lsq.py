"""The Case of lsq."""

import torch

import qkernels as qk
from qkernels.ops.blocks import int_range
from qkernels.ops.lsq import reference

from .case import Case, block_samples, common_errors, ties


def samples(device, dtype):
    variants = [dict(bits=b, signed=s) for b, s in ((4, True), (2, True), (8, True), (1, False), (4, False))]
    yield from block_samples(device, dtype, variants, unit=0.2)
    for kwargs in variants:
        yield (ties(device, dtype, 0.25), torch.tensor([0.25], device=device)), kwargs
        yield (ties(device, dtype, 0.25), torch.tensor([0.25], device=device)), kwargs | {"grad_scale": 0.125}
    for step in (0.1, 0.3, 0.0123):  # where x / step and x * (1 / step) round to different sides
        x = ties(device, torch.float32, step)
        x = torch.cat([x, x.nextafter(x + 1), x.nextafter(x - 1)]).to(dtype)
        yield (x, torch.tensor([step], device=device)), dict(bits=4)
    narrow = dtype == torch.float16
    for step in (2.0**-12, 2.0**10) if narrow else (1e-30, 2.0**-30, 1e-3, 2.0**30, 1e30):  # both division paths
        x = torch.randn(100, generator=torch.Generator().manual_seed(2)) * step * 4
        yield (x.to(device, dtype), torch.tensor([step], device=device)), dict(bits=4)


def errors():
    yield from common_errors("lsq", "step", {"bits": 4})
    x, s = torch.randn(4), torch.tensor([0.1])
    yield (x, s), dict(bits=1), ValueError, r"bits must be between 2 and 8 \(signed\), got 1"
    yield (x, s), dict(bits=0, signed=False), ValueError, r"bits must be between 1 and 8 \(unsigned\), got 0"


def _reference(x, step, *, bits, signed=True, grad_scale=None):
    return reference.lsq(x, step, *int_range("lsq", bits, signed), grad_scale)


CASE = Case(
    name="lsq",
    fn=qk.lsq,
    reference=_reference,
    fwd_args=lambda bits, signed=True, grad_scale=None: int_range("lsq", bits, signed),
    bwd_args=lambda bits, signed=True, grad_scale=None: int_range("lsq", bits, signed),
    samples=samples,
    errors=errors,
    operand=lambda bits, signed=True, grad_scale=None: 2.0**bits * (grad_scale or 1),  # q - v, each up to 2**bits
    harden=lambda x, step, bits, signed=True, grad_scale=None: qk.harden("lsq", x, step, bits=bits, signed=signed),
)
