"""Packed weights at work: matmul and convolution on codes, levels and scales, and the weight as a plain tensor."""

from .ops.lut_linear import op as _lut_linear
from .ops.lut_linear.conv import lut_conv2d
from .ops.lut_linear_int.op import lut_linear_int

lut_linear, lut_dequantize = _lut_linear.lut_linear, _lut_linear.lut_dequantize

__all__ = ["lut_conv2d", "lut_dequantize", "lut_linear", "lut_linear_int"]
