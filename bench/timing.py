"""Interleaved timing. Machines are shared and noisy: a ratio is the median of ratios taken side by side, in one run."""

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


def keep_memory() -> str:
    """Have glibc keep freed blocks of up to 32 MiB instead of giving them back to the system; returns what is in force.

    By default every fresh output of a few MiB costs page faults, as much as the kernel's own time and by chance of what
    lies on top of the heap. Everything that is compared allocates, so it holds for all of it.
    """
    try:
        libc = ctypes.CDLL(None)
        kept = libc.mallopt(-3, 32 << 20) and libc.mallopt(-1, (1 << 31) - 1)  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
    except (AttributeError, OSError):  # not glibc
        kept = False
    return "glibc, freed memory kept" if kept else "as the system has it"


@dataclass(frozen=True)
class Times:
    """Microseconds of one candidate, round by round."""

    us: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.us)

    def quantile(self, q: float) -> float:
        return sorted(self.us)[min(len(self.us) - 1, int(q * len(self.us)))]

    def ratio_to(self, other: "Times") -> float:
        """How many times longer ``other`` took: the median over the rounds."""
        return statistics.median(o / s for s, o in zip(self.us, other.us, strict=True))


def clock(device: str) -> Callable[[Callable[[], object]], float]:
    """A function that runs its argument once and returns the microseconds it took."""
    if device == "cpu":

        def once(fn):
            start = time.perf_counter()
            fn()
            return (time.perf_counter() - start) * 1e6

        return once
    flush = torch.empty(128 << 20, dtype=torch.uint8, device=device)  # twice an H200's L2

    def once_gpu(fn):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda._sleep(500_000)  # a quarter of a millisecond, in which Python can launch what is timed
        start.record()
        fn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    return once_gpu


def captured(fn: Callable[[int], object], laps: int) -> Callable[[int], object]:
    """``fn(0)`` to ``fn(laps - 1)`` as one CUDA graph: no time between kernels but the GPU's own."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made at the first call is made before the capture
        for i in range(laps):
            fn(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(laps):
            fn(i)
    return lambda _: graph.replay()


def interleave(
    candidates: dict[str, Callable[[int], object]],
    device: str,
    seconds: float,
    *,
    hot: bool,
    least: int = 5,
    laps: int = 0,
) -> dict[str, Times]:
    """Time every candidate once a round, round after round, for about ``seconds`` (at least ``least`` rounds).

    candidates: name -> function of a running number, by which it can rotate over copies of its input.
    hot: before it is timed, a candidate runs twice untimed, so that it finds its own data in the caches and not what
        the one before it left there; the time is the mean of three calls. Else once: its code is there, as in a model
        whose layers are all of a kind, but not its data. (On a GPU the L2 cache is always flushed before.)
    laps: > 0: on a GPU, so many calls in a CUDA graph are what is called once, and a time is that of one of them.
    """
    once = clock(device)
    if laps:
        candidates = {name: captured(fn, laps) for name, fn in candidates.items()}
    before, timed = (2, 3) if hot else (1, 1)
    us: dict[str, list[float]] = {name: [] for name in candidates}
    counts = dict.fromkeys(candidates, 0)

    def call(name: str) -> float:
        i, counts[name] = counts[name], counts[name] + 1
        return once(lambda: candidates[name](i))

    for name in candidates:
        for _ in range(3):
            call(name)
    end = time.perf_counter() + seconds
    while min(len(times) for times in us.values()) < least or time.perf_counter() < end:
        for name in candidates:
            for _ in range(before):
                call(name)
            us[name].append(sum(call(name) for _ in range(timed)) / timed / (laps or 1))
    return {name: Times(values) for name, values in us.items()}
