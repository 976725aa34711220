"""Modules: layers that train quantized (Quant*) and layers that run packed (Lut*)."""

from .dropbits import DropBitsQuantizer
from .linear import QuantConv2d, QuantLinear
from .lut import LutConv2d, LutLinear
from .quantizer import Quantizer, quantizers

__all__ = ["DropBitsQuantizer", "LutConv2d", "LutLinear", "QuantConv2d", "QuantLinear", "Quantizer", "quantizers"]
