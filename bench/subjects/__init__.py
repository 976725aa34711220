"""What is measured, one file an op: ours, and what a user would write in eager PyTorch."""

from collections.abc import Callable, Iterator

from . import cpq, lsq, post
from .subject import Subject

OPS: dict[str, Callable[[bool], Iterator[Subject]]] = {"lsq": lsq.subjects, "post": post.subjects, "cpq": cpq.subjects}

__all__ = ["OPS", "Subject"]
