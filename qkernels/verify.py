"""``qkernels verify``: every op's kernels on this machine against their references, on the tests' own data."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .testing import CASES, OTHERS, Case, Other, check, usable


@dataclass(frozen=True)
class Verified:
    """What became of one op on one backend and dtype. problem: the first difference, or what a kernel raised."""

    op: str
    backend: str
    dtype: str
    calls: int
    problem: str | None


def verify(device: str, ops: tuple[str, ...] = ()) -> Iterator[Verified]:
    """One result for each op, backend and dtype that can run on ``device`` ("cpu" or "cuda").

    Values, gradients of x and of every parameter: awkward shapes and layouts, ties, clip edges, tiny and huge scales.
    New tensors start as NaN meanwhile, so that an element that a kernel leaves out is seen.

    Args:
        ops: only these; none: all.

    Raises:
        ValueError: an unknown op.
    """
    known = {case.name: case for case in (*CASES, *OTHERS)}
    if unknown := [op for op in ops if op not in known]:
        raise ValueError(f"op must be among {', '.join(known)}, got {', '.join(unknown)}")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for case in (known[op] for op in ops or known):
            for backend in case.backends():
                for dtype in case.dtypes:
                    if backend != "reference" and usable(case, backend, dtype, device):
                        yield _verify(case, backend, dtype, device)
    finally:
        torch.use_deterministic_algorithms(before)


def _calls(case: Case, backend: str, device: str, dtype: torch.dtype) -> Iterator[None]:
    for tensors, kwargs in case.samples_on(backend, device, dtype):
        check(case, tensors, kwargs, backend)
        yield


def _verify(case: Case | Other, backend: str, dtype: torch.dtype, device: str) -> Verified:
    calls, problem = 0, None
    run = case.calls(backend, device, dtype) if isinstance(case, Other) else _calls(case, backend, device, dtype)
    try:
        for _ in run:
            calls += 1
    except Exception as error:  # a kernel that cannot be compiled or launched is a result too
        said = str(error).strip().splitlines()
        problem = said[0] if isinstance(error, AssertionError) and said else f"{type(error).__name__}: {' '.join(said)}"
    return Verified(case.name, backend, str(dtype).removeprefix("torch."), calls, problem)
