"""Interleaved timing. Machines are shared and noisy: a ratio is the median of ratios taken side by side, in one run."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


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
        start.record()
        fn()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    return once_gpu


def interleave(
    candidates: dict[str, Callable[[int], object]], device: str, seconds: float, least: int = 5
) -> dict[str, Times]:
    """Time every candidate once a round, round after round, for about ``seconds`` (at least ``least`` rounds).

    A candidate takes the round's number, so that it can rotate over copies of its input.
    """
    once = clock(device)
    for fn in candidates.values():
        for i in range(2):
            once(lambda fn=fn, i=i: fn(i))
    us = {name: [] for name in candidates}
    end = time.perf_counter() + seconds
    i = 0
    while i < least or time.perf_counter() < end:
        for name, fn in candidates.items():
            us[name].append(once(lambda fn=fn, i=i: fn(i)))
        i += 1
    return {name: Times(values) for name, values in us.items()}
