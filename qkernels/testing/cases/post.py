"""The Case of post."""

import torch

import qkernels as qk
from qkernels.ops.post import op, reference

from .case import Case, block_samples, common_errors


def samples(device, dtype):
    variants = [
        dict(bits=4), dict(bits=2), dict(bits=3, grid="release"), dict(bits=4, grid="nozero"),
        dict(bits=1, grid="nozero"), dict(bits=3, clip_grad=False), dict(bits=8),
    ]  # fmt: skip
    yield from block_samples(device, dtype, variants, unit=1.5)
    for kwargs in variants:  # every level, every midpoint and its neighbors
        m = torch.tensor(reference.magnitudes(*op._grid(kwargs["bits"], kwargs.get("grid", "exact"))))
        middle = torch.cat([m, (m[1:] + m[:-1]) / 2, m[-1:] / 2])
        edges = torch.cat([middle, middle.nextafter(torch.tensor(2.0)), middle.nextafter(torch.tensor(0.0))])
        for scale in (1.0, 0.3) if dtype == torch.float16 else (1.0, 0.3, 2.0**-30, 1e-30):
            w = torch.cat([edges, -edges]) * scale
            yield (w.to(device, dtype), torch.tensor([scale], device=device)), kwargs


def errors():
    yield from common_errors("post", "scale", {"bits": 4})
    w, s = torch.randn(4), torch.tensor([0.1])
    yield (w, s), dict(bits=1), ValueError, r"bits must be between 2 and 8 \(grid exact\), got 1"
    yield (w, s), dict(bits=4, grid="log2"), ValueError, "grid must be one of exact, release, nozero, got 'log2'"


def _reference(w, scale, *, bits, grid="exact", clip_grad=True, grad_scale=None):
    return reference.post(w, scale, *op._grid(bits, grid), clip_grad, grad_scale)


CASE = Case(
    name="post",
    fn=qk.post,
    reference=_reference,
    fwd_args=lambda bits, grid="exact", clip_grad=True: op._grid(bits, grid),
    bwd_args=lambda bits, grid="exact", clip_grad=True: (*op._grid(bits, grid), clip_grad),
    samples=samples,
    errors=errors,
    operand=lambda bits, grid="exact", clip_grad=True: 2.0,  # l - u, each up to 1
    harden=lambda w, scale, bits, grid="exact", clip_grad=True: qk.harden("post", w, scale, bits=bits, grid=grid),
)
