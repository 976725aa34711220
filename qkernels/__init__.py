"""Fused kernels for quantization-aware training and low-bit inference in PyTorch."""

from . import nn
from ._version import __version__
from .files import load_packed, save_packed
from .matmul import lut_conv2d, lut_dequantize, lut_linear
from .methods import ASQ, DAQ, DQ, LSQ, METHODS, POST
from .model import Plan, Report, calibrate, convert_, param_groups, plan, prepare_
from .pack import LutWeight
from .quant import Hardened, asq, channel_error, cpq, daq, dq, harden, lsq, post, post_levels, soft_assign

__all__ = [
    "ASQ",
    "DAQ",
    "DQ",
    "LSQ",
    "METHODS",
    "POST",
    "Hardened",
    "LutWeight",
    "Plan",
    "Report",
    "__version__",
    "asq",
    "calibrate",
    "channel_error",
    "convert_",
    "cpq",
    "daq",
    "dq",
    "harden",
    "load_packed",
    "lsq",
    "lut_conv2d",
    "lut_dequantize",
    "lut_linear",
    "nn",
    "param_groups",
    "plan",
    "post",
    "post_levels",
    "prepare_",
    "save_packed",
    "soft_assign",
]
