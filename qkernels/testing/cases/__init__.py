"""One Case per op, in the file of its name. The generic tests (tests/test_ops.py) know an op only through its Case."""

from . import asq, cpq, daq, dropbits, lsq, post, soft_assign
from .case import Case

CASES = [module.CASE for module in (lsq, post, cpq, dropbits, daq, soft_assign, asq)]

__all__ = ["CASES", "Case"]
