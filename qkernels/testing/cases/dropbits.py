"""The Case of cpq with gates (DropBits)."""

import torch

import qkernels as qk
from qkernels.ops.dropbits import reference

from .case import Case, block_samples, common_errors, ties


def samples(device, dtype):
    def gates(n, g):
        return torch.rand(n, generator=g) * 0.9 + 0.05

    def parameters(P, g, n=3):
        """rho from 1 to 6."""
        step = (torch.rand(P, generator=g) + 0.5) * 0.2
        return step, step / (1 + 5 * torch.rand(P, generator=g)), gates(n, g)

    yield from block_samples(device, dtype, [dict(bits=4)], unit=parameters)
    g = torch.Generator().manual_seed(1)
    for bits, n in [(8, 127), (8, 7), (4, 7), (3, 3), (3, 2), (2, 1)]:
        # whole levels on and off, wide gaps, equal gates: codes are then those of the nearest level, half to even
        for keep in [
            torch.ones(n),
            torch.zeros(n),
            torch.full((n,), 0.3),
            torch.arange(n) % 2,
            1 - torch.arange(n) % 2,
        ]:
            step = torch.full((3,), 0.25, device=device)
            x = ties(device, dtype, 0.25).repeat(3)
            yield (x, step, step / torch.tensor([0.5, 3.0, 20.0]).to(step), keep.float().to(device)), dict(bits=bits)
        for shape, P in [((0,), 1), ((253,), 1), ((4, 96), 12)]:
            x = torch.randn(shape, generator=g).to(device, dtype)
            yield (x, *(p.to(device) for p in parameters(P, g, n))), dict(bits=bits)


def interpreted(tensors, kwargs):
    """A few programs, and in float32 one of 127 levels."""
    x, *_, keep = tensors
    if x.dtype != torch.float32:
        return x.numel() < 1025 and keep.numel() <= 3
    return x.numel() < 2000 and (keep.numel() < 127 or x.numel() in (0, 253))


def errors():
    x, s, sigma, keep = torch.randn(4), torch.tensor([0.1]), torch.tensor([0.05]), torch.rand(3)
    for tensors, kwargs, exception, message in common_errors("dropbits", "step", {"bits": 4}, (sigma, keep)):
        yield tensors, kwargs, exception, message.replace("dropbits: step", "cpq: step")
    yield (x, s, sigma, 0.5), dict(bits=4), TypeError, "cpq: keep must be a Tensor, got float"
    yield (x, s, sigma, keep.int()), dict(bits=4), TypeError, "cpq: keep must be a float tensor, got torch.int32"
    lengths = r"cpq: keep must have shape \[3\] or \[7\] at 4 bits, got "
    yield (x, s, sigma, keep[:2]), dict(bits=4), ValueError, lengths + r"\[2\]"
    yield (x, s, sigma, keep[None]), dict(bits=4), ValueError, lengths + r"\[1, 3\]"
    yield (x, s, sigma, keep), dict(bits=2), ValueError, r"keep must have shape \[1\] at 2 bits, got \[3\]"
    yield (x, s, sigma, keep.to("meta")), dict(bits=4), ValueError, "x and keep must be on one device, got cpu and meta"
    yield (x, s, sigma, keep), dict(bits=4, signed=False), ValueError, "keep must go with signed=True, got signed=False"
    full = dict(bits=4, estimator="full")
    yield (x, s, sigma, keep), full, ValueError, "keep must go with estimator='argmax', got 'full'"


CASE = Case(
    name="dropbits",
    fn=qk.cpq,
    reference=lambda x, step, sigma, keep, *, bits: reference.dropbits(x, step, sigma, keep, bits),
    fwd_args=lambda bits: (bits,),
    bwd_args=lambda bits: (bits,),
    samples=samples,
    errors=errors,
    # x: a code times rho / 4, rho about 20 at most where it matters; step: two codes; sigma: a code times rho**2;
    # a gate: a code times the step over the smallest gate
    operand=lambda bits: (2.0**bits * 5, 4.0**bits * 5, 2.0**bits * 100, 2.0**bits * 0.3 / 0.05),
    harden=lambda *tensors, bits: qk.harden("cpq", *tensors, bits=bits),
    parameters=lambda P: (torch.ones(P), torch.full((P,), 0.5), torch.tensor([1.0, 0.8, 0.6])),
    shared=(3,),
    positive=(1, 2),
    soft_grad=True,
    interpreted=interpreted,
)
