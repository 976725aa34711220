"""Modules: layers that train quantized (Quant*) and layers that run packed (Lut*)."""

from .adaptive import AdaptiveStep, freeze_steps_
from .dq import BalancedQuantizer, CodebookQuantizer
from .dropbits import DropBitsQuantizer
from .linear import QuantConv2d, QuantLinear
from .lut import LutConv2d, LutLinear
from .quantizer import Quantizer, quantizers

__all__ = [
    "AdaptiveStep",
    "BalancedQuantizer",
    "CodebookQuantizer",
    "DropBitsQuantizer",
    "LutConv2d",
    "LutLinear",
    "QuantConv2d",
    "QuantLinear",
    "Quantizer",
    "freeze_steps_",
    "quantizers",
]
