"""The Case of cpq."""

import torch

import qkernels as qk
from qkernels.ops.cpq import op, reference

from .case import Case, block_samples, common_errors, ties

VARIANTS = [
    dict(bits=4),
    dict(bits=4, truncate=True),
    dict(bits=4, estimator="full"),
    dict(bits=4, estimator="full", truncate=True),
    dict(bits=2, estimator="full", symmetric=True),
    dict(bits=1, signed=False, truncate=True),
    dict(bits=1, signed=False, estimator="full"),
    dict(bits=4, signed=False, estimator="full", truncate=True),
    dict(bits=8),
    dict(bits=8, truncate=True),
    dict(bits=8, estimator="full"),
    dict(bits=8, estimator="full", truncate=True),
]


def samples(device, dtype):
    def parameters(P, g):
        """rho from 1 to 6."""
        step = (torch.rand(P, generator=g) + 0.5) * 0.2
        return step, step / (1 + 5 * torch.rand(P, generator=g))

    yield from block_samples(device, dtype, VARIANTS, unit=parameters)
    for kwargs in VARIANTS:
        for rho in (0.01, 0.5, 3.0, 20.0, 200.0):
            step = torch.tensor([0.25], device=device)
            yield (ties(device, dtype, 0.25), step, step / rho), kwargs
    for step in (0.1, 0.3, 0.0123):  # where x / step and x * (1 / step) round to different sides
        x = ties(device, torch.float32, step)
        x = torch.cat([x, x.nextafter(x + 1), x.nextafter(x - 1)]).to(dtype)
        s = torch.tensor([step], device=device)
        for kwargs in VARIANTS[:4]:
            yield (x, s, s / 3), kwargs
    narrow = dtype == torch.float16
    for step in (2.0**-12, 2.0**10) if narrow else (1e-30, 2.0**-30, 1e-3, 2.0**30, 1e30):
        x = torch.randn(100, generator=torch.Generator().manual_seed(2)) * step * 4
        s = torch.tensor([step], device=device)
        for kwargs in VARIANTS[:4]:
            yield (x.to(device, dtype), s, s / 3), kwargs


def errors():
    sigma = torch.tensor([0.05])
    yield from common_errors("cpq", "step", {"bits": 4}, (sigma,))
    x, s = torch.randn(4), torch.tensor([0.1])
    yield (x, s, sigma), dict(bits=1), ValueError, r"cpq: bits must be between 2 and 8 \(signed\), got 1"
    yield (x, s, 0.1), dict(bits=4), TypeError, r"cpq: sigma must be a Tensor of shape \[P\], got float"
    yield (x, s, sigma[0]), dict(bits=4), ValueError, r"sigma must have shape \[P\], got \[\]; use sigma.reshape\(1\)"
    yield (x, torch.ones(4), torch.ones(2)), dict(bits=4), ValueError, "cpq: sigma must have 1 or P=4 values, got 2"
    yield (x, s, sigma), dict(bits=4, estimator="ste"), ValueError, "estimator must be argmax or full, got 'ste'"
    yield (x, s, sigma), dict(bits=4, truncate=1), TypeError, "cpq: truncate must be a bool, got int"
    unsigned = dict(bits=4, signed=False, symmetric=True)
    yield (x, s, sigma), unsigned, ValueError, "cpq: symmetric=True must go with signed=True, got signed=False"
    yield (x, s, sigma), dict(bits=4, symmetric=None), TypeError, "cpq: symmetric must be a bool, got NoneType"


def _reference(x, step, sigma, *, bits, signed=True, symmetric=False, estimator="argmax", truncate=False):
    grid = op.grid("cpq", bits, signed, symmetric)
    return reference.cpq(x, step, sigma, *grid, estimator == "full", truncate)


def _grid(bits, signed=True, symmetric=False, **_):
    return op.grid("cpq", bits, signed, symmetric)


def _operand(bits, **_):
    """x: a code times rho / 4, rho about 20 at most where it matters; step: two codes; sigma: a code times rho**2."""
    return 2.0**bits * 5, 4.0**bits * 5, 2.0**bits * 100


CASE = Case(
    name="cpq",
    fn=qk.cpq,
    reference=_reference,
    fwd_args=_grid,
    bwd_args=lambda estimator="argmax", truncate=False, **kwargs: (*_grid(**kwargs), estimator == "full", truncate),
    samples=samples,
    errors=errors,
    operand=_operand,
    harden=lambda x, step, sigma, *, estimator="argmax", truncate=False, **kwargs: qk.harden(
        "cpq", x, step, sigma, **kwargs
    ),
    parameters=lambda P: (torch.ones(P), torch.full((P,), 0.3)),
    positive=(1, 2),
    soft_grad=True,
)
