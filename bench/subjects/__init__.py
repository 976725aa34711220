"""What is measured, one file an op: ours, and what a user would write in eager PyTorch."""

from collections.abc import Callable, Iterator

from . import asq, cpq, daq, dropbits, lsq, post, soft_assign
from .subject import Subject

OPS: dict[str, Callable[[bool], Iterator[Subject]]] = {
    module.__name__.rpartition(".")[2]: module.subjects for module in (lsq, post, cpq, dropbits, daq, soft_assign, asq)
}

__all__ = ["OPS", "Subject"]
