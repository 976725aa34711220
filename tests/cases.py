"""One Case per op. The generic tests in test_ops.py know an op only through its Case."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import qkernels as qk
from qkernels.ops.blocks import int_range
from qkernels.ops.lsq import reference as lsq_reference
from qkernels.ops.post import op as post_op
from qkernels.ops.post import reference as post_reference


@dataclass(frozen=True)
class Case:
    name: str
    fn: Callable  # the public function
    reference: Callable  # the same call in plain PyTorch, without checks; computes in float64 if x is float64
    fwd_args: Callable  # arguments of the forward op after the tensors: (**kwargs) -> tuple
    bwd_args: Callable  # the same for the backward op
    samples: Callable[[str, torch.dtype], Iterator]  # (device, dtype) -> (tensors, kwargs); tensors[0] is x
    errors: Callable[[], Iterator]  # () -> (tensors, kwargs, exception, message)
    operand: Callable  # (**kwargs) -> largest value that a gradient term multiplies g by (it may cancel)
    harden: Callable | None = None  # (*tensors, **kwargs) -> Hardened, for quantizers on a hard grid
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)

    def __repr__(self) -> str:
        return self.name


def block_samples(device, dtype, variants, unit):
    """x of every awkward shape and layout, with the parameter [P] in units where |x| is about 1; for each kwargs."""
    g = torch.Generator().manual_seed(0)

    def x(*shape):
        return torch.randn(shape, generator=g).to(device, dtype)

    def p(count):
        return ((torch.rand(count, generator=g) + 0.5) * unit).to(device)

    for shape, P in [((0,), 1), ((1,), 1), ((7,), 1), ((15,), 5), ((16,), 2), ((17,), 17), ((1024,), 1), ((1025,), 1),
                     ((3, 5, 129), 1), ((3, 5, 129), 3), ((33, 31), 33), ((4, 96), 12), ((8192,), 1), ((8193,), 1),
                     ((2, 8191), 2), ((3, 16400), 3)]:  # fmt: skip
        for kwargs in variants if shape in [(0,), (1025,), (4, 96)] else variants[:1]:
            yield (x(*shape), p(P)), kwargs
    kwargs = variants[0]
    yield (x(64, 48).t(), p(1)), kwargs  # permuted
    yield (x(64, 48).t(), p(48)), kwargs
    yield (x(64, 48)[:, 5:29], p(64)), kwargs  # odd offset: strides and alignment
    yield (x(6, 5, 4, 3).to(memory_format=torch.channels_last), p(1)), kwargs
    yield (x(6, 5, 4, 3).to(memory_format=torch.channels_last), p(6)), kwargs
    yield (x(6, 5, 4, 3).to(memory_format=torch.channels_last), p(30)), kwargs  # P that channels_last cannot carry
    yield (x(2, 3, 2, 3, 4).to(memory_format=torch.channels_last_3d), p(2)), kwargs
    yield (x(40, 5)[:, :1].expand(40, 5), p(1)), kwargs  # stride 0


def common_errors(name, fn, first, second, valid):
    x, p = torch.randn(4), torch.tensor([0.1])
    yield (
        (x, p.reshape(())),
        valid,
        ValueError,
        rf"{name}: {second} must have shape \[P\], got \[\]; use {second}.reshape\(1\)",
    )
    yield (x, p.reshape(1, 1)), valid, ValueError, rf"{second} must have shape \[P\], got \[1, 1\]"
    yield (x, torch.ones(3)), valid, ValueError, "P must divide x.numel\\(\\)=4, got P=3"
    yield (x, torch.ones(0)), valid, ValueError, "P must divide x.numel\\(\\)=4, got P=0"
    yield (x, torch.ones(1, dtype=torch.int64)), valid, TypeError, f"{second} must be a float tensor, got torch.int64"
    yield (x.int(), p), valid, TypeError, "x must be a float tensor, got torch.int32"
    yield (3.0, p), valid, TypeError, "x must be a Tensor, got float"
    yield (x, 0.1), valid, TypeError, rf"{second} must be a Tensor of shape \[P\], got float"
    yield (x, p.to("meta")), valid, ValueError, "must be on one device, got cpu and meta"
    yield (x, p), valid | {"bits": 9}, ValueError, "bits must be between . and 8 .*, got 9"
    yield (x, p), valid | {"bits": 4.0}, TypeError, "bits must be an int, got float"
    yield (x, p), valid | {"bits": True}, TypeError, "bits must be an int, got bool"
    yield (
        (x.double(), p),
        valid | {"backend": "cpu"},
        NotImplementedError,
        "cpu: x is torch.float64, needs torch.float32",
    )
    yield (x, p), valid | {"backend": "cuda"}, NotImplementedError, "cuda: "
    yield (x, p), valid | {"backend": "abacus"}, NotImplementedError, "abacus: no such backend"


def ties(device, dtype, step):
    """Every multiple of step / 2 in and around the grid."""
    return (torch.arange(-40, 41) * (step / 2)).to(device, dtype)


def lsq_samples(device, dtype):
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


def lsq_errors():
    yield from common_errors("lsq", qk.lsq, "x", "step", {"bits": 4})
    x, s = torch.randn(4), torch.tensor([0.1])
    yield (x, s), dict(bits=1), ValueError, r"bits must be between 2 and 8 \(signed\), got 1"
    yield (x, s), dict(bits=0, signed=False), ValueError, r"bits must be between 1 and 8 \(unsigned\), got 0"


def post_samples(device, dtype):
    variants = [
        dict(bits=4), dict(bits=2), dict(bits=3, grid="release"), dict(bits=4, grid="nozero"),
        dict(bits=1, grid="nozero"), dict(bits=3, clip_grad=False), dict(bits=8),
    ]  # fmt: skip
    yield from block_samples(device, dtype, variants, unit=1.5)
    for kwargs in variants:  # every level, every midpoint and its neighbors
        m = torch.tensor(post_reference.magnitudes(*post_op._grid(kwargs["bits"], kwargs.get("grid", "exact"))))
        middle = torch.cat([m, (m[1:] + m[:-1]) / 2, m[-1:] / 2])
        edges = torch.cat([middle, middle.nextafter(torch.tensor(2.0)), middle.nextafter(torch.tensor(0.0))])
        for scale in (1.0, 0.3) if dtype == torch.float16 else (1.0, 0.3, 2.0**-30, 1e-30):
            w = torch.cat([edges, -edges]) * scale
            yield (w.to(device, dtype), torch.tensor([scale], device=device)), kwargs


def post_errors():
    yield from common_errors("post", qk.post, "w", "scale", {"bits": 4})
    w, s = torch.randn(4), torch.tensor([0.1])
    yield (w, s), dict(bits=1), ValueError, r"bits must be between 2 and 8 \(grid exact\), got 1"
    yield (w, s), dict(bits=4, grid="log2"), ValueError, "grid must be one of exact, release, nozero, got 'log2'"


def _lsq_reference(x, step, *, bits, signed=True, grad_scale=None):
    return lsq_reference.lsq(x, step, *int_range("lsq", bits, signed), grad_scale)


def _post_reference(w, scale, *, bits, grid="exact", clip_grad=True, grad_scale=None):
    return post_reference.post(w, scale, *post_op._grid(bits, grid), clip_grad, grad_scale)


CASES = [
    Case(
        name="lsq",
        fn=qk.lsq,
        reference=_lsq_reference,
        fwd_args=lambda bits, signed=True, grad_scale=None: int_range("lsq", bits, signed),
        bwd_args=lambda bits, signed=True, grad_scale=None: int_range("lsq", bits, signed),
        samples=lsq_samples,
        errors=lsq_errors,
        operand=lambda bits, signed=True, grad_scale=None: 2.0**bits * (grad_scale or 1),  # q - v, each up to 2**bits
        harden=lambda x, step, bits, signed=True, grad_scale=None: qk.harden("lsq", x, step, bits=bits, signed=signed),
    ),
    Case(
        name="post",
        fn=qk.post,
        reference=_post_reference,
        fwd_args=lambda bits, grid="exact", clip_grad=True: post_op._grid(bits, grid),
        bwd_args=lambda bits, grid="exact", clip_grad=True: (*post_op._grid(bits, grid), clip_grad),
        samples=post_samples,
        errors=post_errors,
        operand=lambda bits, grid="exact", clip_grad=True: 2.0,  # l - u, each up to 1
        harden=lambda w, scale, bits, grid="exact", clip_grad=True: qk.harden("post", w, scale, bits=bits, grid=grid),
    ),
]
