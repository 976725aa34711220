"""One Case per op, in the file of its name. The generic tests (tests/test_ops.py) know an op only through its Case."""

from . import daq, lsq, post, soft_assign
from .case import Case

CASES = [module.CASE for module in (lsq, post, daq, soft_assign)]

__all__ = ["CASES", "Case"]
