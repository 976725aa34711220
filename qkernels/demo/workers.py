"""Other processes that share the work. These nets are too small to share a step among cores."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

K = TypeVar("K")
Task = tuple[Callable[..., Any], *tuple[Any, ...]]  # a function of a module, its arguments


class Workers:
    """``run`` in ``count`` new processes of one thread each, or, if it is one, in this process.

    The processes start when they first get work, and end with the ``with`` block.
    """

    def __init__(self, count: int) -> None:
        self.pool = None
        if count > 1:
            spawn = multiprocessing.get_context("spawn")  # a fork would carry over threads that it cannot run
            self.pool = concurrent.futures.ProcessPoolExecutor(count, spawn, torch.set_num_threads, (1,))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def run(self, tasks: list[tuple[K, Task]]) -> Iterator[tuple[K, Any]]:
        """(key, result) of each task as it is done; its error is raised here."""
        if self.pool is None:
            yield from ((key, function(*arguments)) for key, (function, *arguments) in tasks)
            return
        keys = {self.pool.submit(*task): key for key, task in tasks}
        for future in concurrent.futures.as_completed(keys):
            yield keys[future], future.result()
