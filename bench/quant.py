"""Quantizers against what a user would write in eager PyTorch, and torch.compile of that, in one interleaved run."""

import contextlib
import os
import unittest.mock
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from qkernels import backends

from .subjects import OPS, Subject
from .timing import interleave


def forward(fn: Callable, inputs: list[tuple[Tensor, ...]]) -> Callable[[int], object]:
    return lambda i: fn(*inputs[i % len(inputs)][:-1])


def backward(fn: Callable, inputs: list[tuple[Tensor, ...]]) -> Callable[[int], object]:
    graphs = [(fn(*leaves), leaves, g) for *leaves, g in inputs]

    def run(i):
        y, leaves, g = graphs[i % len(graphs)]
        return torch.autograd.grad(y, leaves, g, retain_graph=True)

    return run


def both(fn: Callable, inputs: list[tuple[Tensor, ...]]) -> Callable[[int], object]:
    def run(i):
        *leaves, g = inputs[i % len(inputs)]
        return torch.autograd.grad(fn(*leaves), leaves, g)

    return run


PASSES = {"fwd": (forward, 2), "bwd": (backward, 3), "fwd+bwd": (both, 5)}  # name -> (maker, tensors read or written)


def saved_bytes(fn: Callable, x: Tensor, *params: Tensor) -> float:
    """Bytes per element kept alive for backward, beyond x and the parameters."""
    own = {t.untyped_storage().data_ptr() for t in (x, *params)}
    seen: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = fn(x, *params)
    del y
    # what is as small as a parameter (its cast, a view, a count) is not per element
    return sum(size for size in seen.values() if size > 64 * 4 * max(p.numel() for p in params)) / x.numel()


def make_inputs(subject: Subject, shape: tuple[int, ...], dtype: torch.dtype, device: str, copies: int) -> list[tuple]:
    g = torch.Generator().manual_seed(0)
    inputs = []
    for _ in range(copies):
        x = (torch.randn(shape, generator=g) * 0.5).to(device, dtype).requires_grad_()
        params = [p.to(device).requires_grad_() for p in subject.parameters()]
        inputs.append((x, *params, torch.randn(shape, generator=g).to(device, dtype)))
    return inputs


def check_equal(subject: Subject, x: Tensor, *params: Tensor) -> None:
    """The eager baseline computes the same thing, or the comparison means nothing (ties may fall to either side)."""
    with torch.no_grad():
        got, want = (fn(x, *params).float() for fn in (subject.ours, subject.eager))
    near = 16 * torch.finfo(x.dtype).eps * want.abs().max() if subject.soft else 0.0
    differ = ((got - want).abs() > near).float().mean().item()
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
    x, *params, _ = inputs[0]
    fns = {"ours": subject.ours}
    if not (subject.heavy and x.numel() > 1 << 23):
        check_equal(subject, x, *params)
        torch._dynamo.reset()
        fns |= {"eager": subject.eager, "compiled": torch.compile(subject.eager)}
    if subject.torch and dtype == torch.float32:
        fns["torch"] = subject.torch
    source = torch.randn(shape, device=device).to(dtype)
    sink = torch.empty_like(source)
    size = x.numel() * dtype.itemsize
    for name, (make, tensors) in PASSES.items():
        candidates = {n: make(fn, inputs) for n, fn in fns.items()}
        candidates["copy"] = lambda i: sink.copy_(source)
        times = interleave(
            candidates, device, seconds, hot=cache == "hot" and not subject.slow, least=3 if subject.slow else 5
        )
        ours = times["ours"]
        row = {
            "op": subject.op, "variant": subject.variant, "bits": subject.bits, "shape": list(shape),
            "dtype": str(dtype)[6:], "device": device, "pass": name,
            "backend": backends.resolve(subject.kernels or subject.op, x, None),
            "median_us": ours.median, "p10_us": ours.quantile(0.1), "p90_us": ours.quantile(0.9),
            "gbps": tensors * size / ours.median / 1e3, "roof_gbps": 2 * size / times["copy"].median / 1e3,
            "saved_bytes_per_element": saved_bytes(subject.ours, x, *params),
            "cache": cache,
        }  # fmt: skip
        for other in ("eager", "compiled", "torch"):
            if other in times:
                row |= {f"{other}_us": times[other].median, f"x_{other}": ours.ratio_to(times[other])}
        if "eager" in times:
            row["eager_saved_bytes_per_element"] = saved_bytes(subject.eager, x, *params)
        yield {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def run(device: str, quick: bool, ops: Sequence[str] = tuple(OPS)) -> Iterator[dict]:
    """Rows of the quantizer benchmark."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own, while it compiles
    settings = [("hot", torch.float32, (1, 1 << 20))]
    if not quick:
        settings += [("rotated", torch.float32, (1, 1 << 20)), ("hot", torch.bfloat16, (1, 1 << 20))]
    if device == "cuda":
        settings = [("rotated", torch.bfloat16, (1, 1 << 22))]
        if not quick:
            settings.append(("rotated", torch.bfloat16, (1, 1 << 26)))
    for cache, dtype, shape in settings:
        for subject in (s for op in ops for s in OPS[op](quick)):
            for backend in _backends(subject.kernels or subject.op, device):
                with _chosen(backend):
                    yield from measure(subject, device, dtype, subject.shape or shape, cache, 1.5 if quick else 3.0)


def _backends(op: str, device: str) -> list[str]:
    """On a GPU each that has the op, verified there or not; on a CPU the one that is chosen by itself."""
    if device == "cpu":
        return [backends.resolve(op, torch.empty(0), None)]
    return [b for b in ("cuda", "triton") if b in backends.backends_of(op)]


@contextlib.contextmanager
def _chosen(backend: str) -> Iterator[None]:
    with unittest.mock.patch.dict(os.environ, QKERNELS_BACKEND=backend):
        yield
