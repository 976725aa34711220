"""What the kernels are judged by: cases of every op, rules of comparison. Used by the tests and by ``qkernels verify``.

Not imported by ``import qkernels``.
"""

from .cases import CASES, Case
from .check import check, usable
from .others import OTHERS, Other

__all__ = ["CASES", "OTHERS", "Case", "Other", "check", "usable"]
