"""Quantizers against what a user would write in eager PyTorch, and torch.compile of that, in one interleaved run."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import qkernels as qk
from qkernels import backends

from .timing import interleave


def ste(value: Tensor, x: Tensor) -> Tensor:
    return x + (value - x).detach()


def eager_lsq(x: Tensor, step: Tensor, bits: int) -> Tensor:
    v = (x / step[:, None].to(torch.float32)).clamp(-(1 << bits - 1), (1 << bits - 1) - 1)
    return (ste(v.round(), v) * step[:, None]).to(x.dtype)


def eager_post_argmin(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest of K levels by an N x K distance tensor, as the papers' code does it."""
    levels = qk.post_levels(bits).to(w.device)
    u = (w / scale[:, None].to(torch.float32)).clamp(-1, 1)
    return (ste(levels[(u.detach()[..., None] - levels).abs().argmin(-1)], u) * scale[:, None]).to(w.dtype)


def eager_post_bucketize(w: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest of K levels by binary search over their midpoints."""
    levels = qk.post_levels(bits).to(w.device)
    u = (w / scale[:, None].to(torch.float32)).clamp(-1, 1)
    return (ste(levels[torch.bucketize(u.detach(), (levels[1:] + levels[:-1]) / 2)], u) * scale[:, None]).to(w.dtype)


def torch_fake_quantize(x: Tensor, step: Tensor, bits: int) -> Tensor:
    zero_point = torch.zeros(1, device=x.device, requires_grad=True)
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return torch._fake_quantize_learnable_per_tensor_affine(x, step, zero_point, low, high, 1.0)


@dataclass(frozen=True)
class Subject:
    op: str
    variant: str  # what it is compared with, or how it is set up
    bits: int
    ours: Callable[[Tensor, Tensor], Tensor]
    eager: Callable[[Tensor, Tensor], Tensor]
    parameter: float
    torch: Callable[[Tensor, Tensor], Tensor] | None = None  # the same function, if torch has one fused


def subjects(quick: bool) -> Iterator[Subject]:
    for bits in (4,) if quick else (2, 4, 8):
        yield Subject(
            "lsq", "per tensor", bits,
            lambda x, p, b=bits: qk.lsq(x, p, bits=b),
            lambda x, p, b=bits: eager_lsq(x, p, b), 3.0 / 2**bits,
            lambda x, p, b=bits: torch_fake_quantize(x, p, b),
        )  # fmt: skip
    for name, eager in (("argmin over N x K", eager_post_argmin), ("bucketize", eager_post_bucketize)):
        for bits in (4,) if quick else (2, 3, 4):
            yield Subject(
                "post", f"against {name}", bits,
                lambda x, p, b=bits: qk.post(x, p, bits=b),
                lambda x, p, b=bits, f=eager: f(x, p, b), 1.0,
            )  # fmt: skip


def forward(fn: Callable, inputs: list[tuple[Tensor, ...]]) -> Callable[[int], object]:
    return lambda i: fn(*inputs[i % len(inputs)][:2])


def backward(fn: Callable, inputs: list[tuple[Tensor, ...]]) -> Callable[[int], object]:
    graphs = [(fn(x, p), (x, p), g) for x, p, g in inputs]

    def run(i):
        y, leaves, g = graphs[i % len(graphs)]
        return torch.autograd.grad(y, leaves, g, retain_graph=True)

    return run


def both(fn: Callable, inputs: list[tuple[Tensor, ...]]) -> Callable[[int], object]:
    def run(i):
        x, p, g = inputs[i % len(inputs)]
        return torch.autograd.grad(fn(x, p), (x, p), g)

    return run


PASSES = {"fwd": (forward, 2), "bwd": (backward, 3), "fwd+bwd": (both, 5)}  # name -> (maker, tensors read or written)


def saved_bytes(fn: Callable, x: Tensor, p: Tensor) -> float:
    """Bytes per element kept alive for backward, beyond x and the parameter."""
    own = {x.untyped_storage().data_ptr(), p.untyped_storage().data_ptr()}
    seen: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = fn(x, p)
    del y
    return (
        sum(b for b in seen.values() if b > 64 * 4) / x.numel()
    )  # one P = 1 parameter's cast or view is not per element


def make_inputs(subject: Subject, shape: tuple[int, ...], dtype: torch.dtype, device: str, copies: int) -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(copies):
        x = (torch.randn(shape, generator=g) * 0.5).to(device, dtype).requires_grad_()
        p = torch.tensor([subject.parameter], device=device, requires_grad=True)
        inputs.append((x, p, torch.randn(shape, generator=g).to(device, dtype)))
    return inputs


def check_equal(subject: Subject, x: Tensor, p: Tensor) -> None:
    """The eager baseline computes the same thing, or the comparison means nothing (ties may fall to either side)."""
    with torch.no_grad():
        got, want = subject.ours(x, p), subject.eager(x, p)
    differ = (got != want).float().mean().item()
    if differ > 1e-5:
        raise AssertionError(
            f"{subject.op} {subject.variant}: {differ:.2%} of the values differ from the eager baseline"
        )


def measure(
    subject: Subject, device: str, dtype: torch.dtype, shape: tuple[int, ...], cache: str, seconds: float
) -> Iterator[dict]:
    """One row a pass."""
    copies = 1 if cache == "hot" else max(2, (256 << 20) // (torch.Size(shape).numel() * dtype.itemsize * 3))
    inputs = make_inputs(subject, shape, dtype, device, copies)
    x, p, _ = inputs[0]
    check_equal(subject, x, p)
    torch._dynamo.reset()
    compiled = torch.compile(subject.eager)
    fns = {"ours": subject.ours, "eager": subject.eager, "compiled": compiled}
    if subject.torch and dtype == torch.float32:
        fns["torch"] = subject.torch
    source = torch.randn(shape, device=device).to(dtype)
    sink = torch.empty_like(source)
    size = x.numel() * dtype.itemsize
    for name, (make, tensors) in PASSES.items():
        candidates = {n: make(fn, inputs) for n, fn in fns.items()}
        candidates["copy"] = lambda i: sink.copy_(source)
        times = interleave(candidates, device, seconds, hot=cache == "hot")
        ours = times["ours"]
        row = {
            "op": subject.op, "variant": subject.variant, "bits": subject.bits, "shape": list(shape),
            "dtype": str(dtype)[6:], "device": device, "backend": backends.resolve(subject.op, x, None), "pass": name,
            "median_us": ours.median, "p10_us": ours.quantile(0.1), "p90_us": ours.quantile(0.9),
            "eager_us": times["eager"].median, "compiled_us": times["compiled"].median,
            "x_eager": ours.ratio_to(times["eager"]), "x_compiled": ours.ratio_to(times["compiled"]),
            "gbps": tensors * size / ours.median / 1e3, "roof_gbps": 2 * size / times["copy"].median / 1e3,
            "saved_bytes_per_element": saved_bytes(subject.ours, x, p),
            "eager_saved_bytes_per_element": saved_bytes(subject.eager, x, p), "cache": cache,
        }  # fmt: skip
        if "torch" in times:
            row |= {"torch_us": times["torch"].median, "x_torch": ours.ratio_to(times["torch"])}
        yield {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def run(device: str, quick: bool) -> Iterator[dict]:
    """Rows of the quantizer benchmark."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own, while it compiles
    settings = [("hot", torch.float32, (1, 1 << 20))]
    if not quick:
        settings += [("rotated", torch.float32, (1, 1 << 20)), ("hot", torch.bfloat16, (1, 1 << 20))]
    if device == "cuda":
        settings = [("rotated", torch.bfloat16, (1, 1 << 26 if not quick else 1 << 22))]
    for cache, dtype, shape in settings:
        for subject in subjects(quick):
            yield from measure(subject, device, dtype, shape, cache, 1.5 if quick else 3.0)
