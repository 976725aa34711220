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
from .timing import Times, interleave


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


def check_equal(subject: Subject, ours: Callable, x: Tensor, *params: Tensor) -> None:
    """The eager baseline computes the same thing, or the comparison means nothing (ties may fall to either side)."""
    with torch.no_grad():
        got, want = (fn(x, *params).float() for fn in (ours, subject.eager))
    near = 16 * torch.finfo(x.dtype).eps * want.abs().max() if subject.soft else 0.0
    differ = ((got - want).abs() > near).float().mean().item()
    if differ > 1e-5:
        raise AssertionError(
            f"{subject.op} {subject.variant}: {differ:.2%} of the values differ from the eager baseline"
        )


def on(backend: str, fn: Callable) -> Callable:
    """fn, asked for this backend by the environment."""

    def call(*args):
        with unittest.mock.patch.dict(os.environ, QKERNELS_BACKEND=backend):
            return fn(*args)

    return call


def measure(
    subject: Subject,
    device: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    cache: str,
    seconds: float,
    compare: bool = True,
) -> Iterator[dict]:
    """One row a pass and backend; compare: with the eager and the compiled formula, where their tensors fit."""
    copies = 1 if cache != "rotated" else max(2, (256 << 20) // (torch.Size(shape).numel() * dtype.itemsize * 3))
    inputs = make_inputs(subject, shape, dtype, device, copies)
    x, *params, _ = inputs[0]
    ours = backends_on(subject.kernels or subject.op, x)
    fns = {b: on(b, subject.ours) if device == "cuda" else subject.ours for b in ours}
    if subject.torch and dtype == torch.float32:
        fns["torch"] = subject.torch
    if compare and not (subject.heavy and x.numel() > 1 << 23):
        check_equal(subject, fns[ours[0]], x[:, : 1 << 20] if x.dim() == 2 else x, *params)
        torch._dynamo.reset()
        fns |= {"eager": subject.eager, "compiled": torch.compile(subject.eager)}
    source = torch.randn(shape, device=device).to(dtype)
    sink = torch.empty_like(source)
    size = x.numel() * dtype.itemsize
    for name, (make, tensors) in PASSES.items():

        def timed(fns: dict[str, Callable], make: Callable = make) -> dict[str, Times]:
            candidates = {n: make(fn, inputs) for n, fn in fns.items()}
            candidates["copy"] = lambda i: sink.copy_(source)
            hot, least = cache == "hot" and not subject.slow, 3 if subject.slow else 5
            return interleave(candidates, device, seconds, hot=hot, least=least)

        times = None
        with contextlib.suppress(torch.OutOfMemoryError):  # N x K of many levels, on a large tensor
            times = timed(fns)
        if times is None:
            fns = {n: fn for n, fn in fns.items() if n not in ("eager", "compiled")}
            torch.cuda.empty_cache()
            times = timed(fns)
        for backend in ours:
            mine = times[backend]
            row = {
                "op": subject.op, "variant": subject.variant, "bits": subject.bits, "shape": list(shape),
                "dtype": str(dtype)[6:], "device": device, "pass": name, "backend": backend,
                "median_us": mine.median, "p10_us": mine.quantile(0.1), "p90_us": mine.quantile(0.9),
                "gbps": tensors * size / mine.median / 1e3, "roof_gbps": 2 * size / times["copy"].median / 1e3,
                "saved_bytes_per_element": saved_bytes(fns[backend], x, *params),
                "cache": cache,
            }  # fmt: skip
            for other in ("eager", "compiled", "torch"):
                if other in times:
                    row |= {f"{other}_us": times[other].median, f"x_{other}": mine.ratio_to(times[other])}
            if "eager" in times:
                row["eager_saved_bytes_per_element"] = saved_bytes(subject.eager, x, *params)
            yield {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def run(device: str, quick: bool, ops: Sequence[str] = tuple(OPS)) -> Iterator[dict]:
    """Rows of the quantizer benchmark."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch's own, while it compiles
    if device == "cuda":  # large tensors against what else there is; then all widths, ours alone
        chosen = [(s, (1, 1 << 22 if quick else 1 << 26), True) for op in ops for s in OPS[op](True)]
        if not quick:
            chosen += [(s, (1, 1 << 22), False) for op in ops for s in OPS[op](False)]
        for subject, shape, compare in chosen:
            yield from measure(subject, device, torch.bfloat16, subject.shape or shape, "flushed", 0.3, compare)
        return
    settings = [("hot", torch.float32)]
    if not quick:
        settings += [("rotated", torch.float32), ("hot", torch.bfloat16)]
    for cache, dtype in settings:
        for subject in (s for op in ops for s in OPS[op](quick)):
            yield from measure(subject, device, dtype, subject.shape or (1, 1 << 20), cache, 1.5 if quick else 3.0)


def backends_on(op: str, x: Tensor) -> list[str]:
    """On a GPU each that has the op, verified there or not; on a CPU the one that is chosen by itself."""
    if not x.is_cuda:
        return [backends.resolve(op, x, None)]
    return [b for b in ("cuda", "triton") if b in backends.backends_of(op)]
