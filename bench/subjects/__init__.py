"""What is measured, one file an op: ours, and what a user would write in eager PyTorch."""

from collections.abc import Callable, Iterator

from . import asq, daq, lsq, post
from .subject import Subject

OPS: dict[str, Callable[[bool], Iterator[Subject]]] = {
    "asq": asq.subjects,
    "daq": daq.subjects,
    "lsq": lsq.subjects,
    "post": post.subjects,
}

__all__ = ["OPS", "Subject"]
