"""Fused kernels for quantization-aware training and low-bit inference in PyTorch."""

from . import nn
from ._version import __version__
from .files import load_packed, save_packed
from .matmul import lut_conv2d, lut_dequantize, lut_linear
from .methods import CPQ, LSQ, METHODS, POST
from .model import Plan, Report, calibrate, convert_, param_groups, penalty, plan, prepare_
from .pack import LutWeight
from .quant import Hardened, bit_penalty, cpq, hard_concrete, harden, lsq, post, post_levels

__all__ = [
    "CPQ",
    "LSQ",
    "METHODS",
    "POST",
    "Hardened",
    "LutWeight",
    "Plan",
    "Report",
    "__version__",
    "bit_penalty",
    "calibrate",
    "convert_",
    "cpq",
    "hard_concrete",
    "harden",
    "load_packed",
    "lsq",
    "lut_conv2d",
    "lut_dequantize",
    "lut_linear",
    "nn",
    "param_groups",
    "penalty",
    "plan",
    "post",
    "post_levels",
    "prepare_",
    "save_packed",
]
