"""Fused kernels for quantization-aware training and low-bit inference in PyTorch."""

from . import nn
from ._version import __version__
from .files import load_packed, save_packed
from .matmul import lut_conv2d, lut_dequantize, lut_linear, lut_linear_int
from .methods import ASQ, CPQ, DAQ, DQ, LSQ, METHODS, POST
from .model import Report, calibrate, convert_, param_groups, penalty, prepare_, use_integers_
from .pack import LutWeight
from .planning import Plan, plan
from .quant import (
    Hardened,
    asq,
    bit_penalty,
    channel_error,
    cpq,
    daq,
    dq,
    hard_concrete,
    harden,
    lsq,
    post,
    post_levels,
    soft_assign,
)

__all__ = [
    "ASQ",
    "CPQ",
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
    "bit_penalty",
    "calibrate",
    "channel_error",
    "convert_",
    "cpq",
    "daq",
    "dq",
    "hard_concrete",
    "harden",
    "load_packed",
    "lsq",
    "lut_conv2d",
    "lut_dequantize",
    "lut_linear",
    "lut_linear_int",
    "nn",
    "param_groups",
    "penalty",
    "plan",
    "post",
    "post_levels",
    "prepare_",
    "save_packed",
    "soft_assign",
    "use_integers_",
]
