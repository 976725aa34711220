"""Fused kernels for quantization-aware training and low-bit inference in PyTorch."""

from .quant import Hardened, harden, lsq, post, post_levels

__version__ = "0.1.0"
__all__ = ["Hardened", "harden", "lsq", "post", "post_levels"]
