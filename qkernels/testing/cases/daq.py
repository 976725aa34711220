"""The Case of daq."""

import torch

import qkernels as qk
from qkernels.ops.daq import op, reference

from .case import Case, block_samples, common_errors

WAYS = [
    dict(bits=4),
    dict(bits=4, signed=False),
    dict(bits=1),
    dict(bits=1, signed=False),
    dict(bits=2, gamma=0.1, sigma=0.5),
    dict(bits=3, symmetric=True),
    dict(bits=8, signed=False, gamma=10.0, sigma=4.0),
]


def _bounds(P, g):
    lower, upper, scale = torch.rand(3, P, generator=g) + 0.5
    return -lower, upper, (lower + upper) / 3 * scale  # at most half the distance of the bounds, see _operand


def points(device, dtype, n, lower, upper, scale):
    """Codes, the middles between them and the numbers next to these, on and around the bounds; and the parameters."""
    unit = torch.arange(-2, 2 * n + 3, dtype=torch.float64) / (2 * n)
    x = (lower + unit * (upper - lower)).float()
    x = torch.cat([x, x.nextafter(x + 1), x.nextafter(x - 1), torch.tensor([lower, upper])])
    return (x.to(device, dtype), *(torch.tensor([p], device=device) for p in (lower, upper, scale)))


def samples(device, dtype):
    yield from block_samples(device, dtype, WAYS, unit=_bounds)
    for kwargs in WAYS:
        n = op.largest_code("daq", kwargs["bits"], kwargs.get("signed", True), kwargs.get("symmetric", False))
        yield points(device, dtype, n, 0.0, float(n), 1.0), kwargs  # every code and every middle is exact
        for lower, upper, scale in ((-1.0, 1.0, 1.0), (0.0, 0.7, 0.3), (0.3, 1.1, 0.4)):
            yield points(device, dtype, n, lower, upper, scale), kwargs
    narrow = dtype == torch.float16
    for size in (2.0**-12, 2.0**10) if narrow else (1e-30, 2.0**-30, 1e-3, 2.0**30, 1e30):
        x = torch.randn(100, generator=torch.Generator().manual_seed(2)) * size
        bounds = (torch.tensor([p * size], device=device) for p in (-1.5, 1.25, 1.0))
        yield (x.to(device, dtype), *bounds), dict(bits=4)


def errors():
    rest = (torch.tensor([1.0]), torch.tensor([1.0]))
    yield from common_errors("daq", "lower", {"bits": 4}, rest)
    x, low, u = torch.randn(4), torch.tensor([-1.0]), torch.tensor([1.0])
    yield (x, low, u), dict(bits=0), ValueError, r"daq: bits must be between 1 and 8 \(signed\), got 0"
    yield (x, low, u), dict(bits=9, signed=False), ValueError, r"bits must be between 1 and 8 \(unsigned\), got 9"
    yield (x, low, u), dict(bits=1, symmetric=True), ValueError, r"bits must be between 2 and 8 \(symmetric\), got 1"
    yield (x, low, u), dict(bits=4, signed=False, symmetric=True), ValueError, "a symmetric grid must be signed, got"
    yield (x, low, u), dict(bits=4, gamma=0.0), ValueError, "daq: gamma must be above 0 and at most 80, got 0"
    yield (x, low, u), dict(bits=4, gamma=torch.nan), ValueError, "gamma must be above 0 and at most 80, got nan"
    yield (x, low, u), dict(bits=4, gamma="2"), TypeError, "gamma must be a number, got str"
    yield (x, low, u), dict(bits=4, sigma=101), ValueError, "daq: sigma must be above 0.01 and at most 100, got 101"
    yield (x, low, u), dict(bits=4, sigma=True), TypeError, "sigma must be a number, got bool"
    yield (x, low, torch.ones(3)), dict(bits=4), ValueError, "P must divide"
    yield (torch.randn(6), torch.ones(2), torch.ones(3)), dict(bits=4), ValueError, "lower must have 1 or P=3 values"
    yield (x, low, u, u.reshape(())), dict(bits=4), ValueError, r"daq: scale must have shape \[P\], got \[\]"
    yield (x, low, 1.0), dict(bits=4), TypeError, r"upper must be a Tensor of shape \[P\], got float"


def _fwd_args(bits, signed=True, symmetric=False, gamma=2.0, sigma=None):
    return op.largest_code("daq", bits, signed, symmetric), signed


def _reference(x, lower, upper, scale, *, bits, signed=True, symmetric=False, gamma=2.0, sigma=None):
    shape = op.checked_shape("daq", gamma, sigma, signed)
    return reference.daq(x, lower, upper, scale, op.largest_code("daq", bits, signed, symmetric), signed, *shape)


def _bwd_args(bits, signed=True, symmetric=False, gamma=2.0, sigma=None):
    return *_fwd_args(bits, signed, symmetric), *op.constants(*op.checked_shape("daq", gamma, sigma, signed))


def _operand(bits, signed=True, symmetric=False, gamma=2.0, sigma=None):
    """dx: at most the gain, where 2 scale <= upper - lower. dlower, dupper: the four factors g, slope, coth and x_n."""
    gain = reference.gain(torch.tensor(0.5, dtype=torch.float64), *op.checked_shape("daq", gamma, sigma, signed)).item()
    return [gain, 4 * gain, 4 * gain, 1.0]


CASE = Case(
    name="daq",
    fn=qk.daq,
    reference=_reference,
    fwd_args=_fwd_args,
    bwd_args=_bwd_args,
    samples=samples,
    errors=errors,
    operand=_operand,
    harden=lambda x, lower, upper, scale, bits, signed=True, symmetric=False, **gradient: qk.harden(
        "daq", x, lower, upper, scale, bits=bits, signed=signed, symmetric=symmetric
    ),
    parameters=lambda P: (-torch.ones(P), torch.ones(P), torch.ones(P)),
    positive=(3,),
    soft_grad=True,
)
