"""The Case of soft_assign."""

import torch

import qkernels as qk
from qkernels.ops.soft_assign import reference

from .case import Case, block_samples


def codebooks(count, g, K=3):
    """levels [count, K] (of one block: [K]) about 0.4 apart, temperature [count] such that neighbors weigh e**-1."""
    levels = (torch.linspace(-0.2, 0.2, K) * (K - 1) + (torch.rand(count, K, generator=g) - 0.5) * 0.3).sort(1).values
    return levels[0] if count == 1 else levels, torch.rand(count, generator=g) * 6 + 3


def samples(device, dtype):
    def on(x, levels, temperature):
        return x.to(device, dtype), levels.to(device), temperature.to(device)

    for kwargs in ({}, {"hard": True}):
        yield from block_samples(device, dtype, [kwargs], codebooks)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(6, 64, generator=g) * 2
    rows, inverse = codebooks(6, g, 5)
    for hard in (False, True):
        yield on(x, rows, inverse[:1]), {"hard": hard}
        yield on(x, rows[0], inverse), {"hard": hard}
        yield on(x, rows[:1], inverse), {"hard": hard}
        levels, t = codebooks(1, g, 256)
        yield on(x * 20, levels, t), {"hard": hard}
        for K in (2, 3, 4, 5, 16, 17, 33):
            levels, t = codebooks(1, g, K)
            yield on(x * K / 8, levels, t), {"hard": hard}
            middle = (levels[1:] + levels[:-1]) * 0.5  # each level, each midpoint and its neighbors
            far = torch.tensor([8.0, 60.0, 1000.0])
            edges = torch.cat([levels, middle, middle.nextafter(levels[1:]), middle.nextafter(levels[:-1]), far, -far])
            yield on(edges, levels, t), {"hard": hard}
        levels, t = codebooks(1, g, 5)
        for factor in (1e-3, 0.1, 10.0, 1e3):
            yield on(x, levels, t * factor), {"hard": hard}
        yield on(x, torch.tensor([-1.0, 0.0, 0.0, 0.5, 60.0]), t), {"hard": hard}  # equal levels, and one far away
        if dtype == torch.float32:
            for far in (1e10, 1e20, 1e30, 3e38):
                yield on(torch.tensor([far, -far, 0.1]), levels, t), {"hard": hard}
            yield on(x + 100, levels + 100, t), {"hard": hard}


def interpreted(tensors, kwargs):
    """A hard call's backward is that of the soft one: the long and the wide are interpreted once."""
    x, levels, _ = tensors
    return not kwargs.get("hard") or (x.numel() < 16000 and levels.shape[-1] < 256)


def errors():
    x, q, t = torch.randn(4), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([2.0])
    shape = r"soft_assign: levels must have shape \[K\] or \[P, K\], K of 2 to 256, got "
    yield (x, q.reshape(1, 1, 3), t), {}, ValueError, shape + r"\[1, 1, 3\]"
    yield (x, q[0], t), {}, ValueError, shape + r"\[\]"
    yield (x, q[:1], t), {}, ValueError, shape + r"\[1\]"
    yield (x, torch.arange(257.0), t), {}, ValueError, shape + r"\[257\]"
    yield (x, [0.0, 1.0], t), {}, TypeError, r"levels must be a Tensor of shape \[K\] or \[P, K\], got list"
    yield (x, q.int(), t), {}, TypeError, "levels must be a float tensor, got torch.int32"
    yield (x, q, t[0]), {}, ValueError, r"temperature must have shape \[P\], got \[\]; use temperature.reshape\(1\)"
    yield (x, q, 2.0), {}, TypeError, r"temperature must be a Tensor of shape \[P\], got float"
    yield (x, q.repeat(3, 1), t), {}, ValueError, r"P must divide x.numel\(\)=4, got P=3"
    yield (x, q.repeat(2, 1), t.repeat(4)), {}, ValueError, "levels must have 1 or P=4 values, got 2"
    yield (x, q.repeat(4, 1), t.repeat(2)), {}, ValueError, "temperature must have 1 or P=4 values, got 2"
    yield (x.int(), q, t), {}, TypeError, "x must be a float tensor, got torch.int32"
    yield (3.0, q, t), {}, TypeError, "x must be a Tensor, got float"
    yield (x, q.to("meta"), t), {}, ValueError, "x and levels must be on one device, got cpu and meta"
    yield (x, q, t), {"hard": 1}, TypeError, "hard must be a bool, got int"
    refused = "backend='cpu' cannot run: x is torch.float64, needs torch.float32"
    yield (x.double(), q, t), {"backend": "cpu"}, NotImplementedError, refused
    yield (x, q, t), {"backend": "cuda"}, NotImplementedError, "backend='cuda' cannot run: "
    yield (x, q, t), {"backend": "abacus"}, NotImplementedError, "backend='abacus' cannot run: no such backend"


def _reference(x, levels, temperature, hard=False):
    rows = levels if levels.dim() == 2 else levels[None]
    P = max(rows.shape[0], temperature.shape[0])
    return reference.soft_assign(x, rows.expand(P, -1), temperature.expand(P), hard)


def _harden(x, levels, temperature, hard=False):
    one_codebook = levels.dim() == 1 or levels.shape[0] == 1
    return qk.harden("soft_assign", x, levels, temperature, hard=hard) if hard and one_codebook else None


CASE = Case(
    name="soft_assign",
    fn=qk.soft_assign,
    reference=_reference,
    fwd_args=lambda hard=False: (hard,),
    bwd_args=lambda hard=False: (),
    samples=samples,
    errors=errors,
    # where two levels D apart share x: 2t D**2 / 4, about 1 for neighbors; 1 + 2t (q - y) (x - q), about 2
    operand=lambda hard=False: (1.0, 2.0, 1.0),
    harden=_harden,
    plain={},
    parameters=lambda P: (torch.linspace(-1, 1, 5).repeat(P, 1), torch.full((P,), 4.0)),
    rows=(1,),
    positive=(2,),
    soft_forward=lambda hard=False: not hard,
    soft_grad=True,
    interpreted=interpreted,
)
