"""One Case per op, in the file of its name. The generic tests in test_ops.py know an op only through its Case."""

from . import cpq, dropbits, lsq, post
from .case import Case

CASES = [module.CASE for module in (lsq, post, cpq, dropbits)]

__all__ = ["CASES", "Case"]
