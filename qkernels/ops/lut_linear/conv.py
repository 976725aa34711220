"""Convolution with packed weights: PyTorch's, with the weight as floats for the call, or the packed matmul."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qkernels import backends
from qkernels.pack import LutWeight, matrix_shape

from . import op

_FEW_PIXELS = 64  # of an image, up to where a 1x1 convolution with a large weight is faster as a packed matmul, and
_LARGE = 1 << 16  # the elements that make it large


def lut_conv2d(
    x: Tensor,
    w: LutWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d`` with a packed weight, which becomes floats of x's dtype for the call (kept if x needs a gradient).

    It gives the bits that ``F.conv2d`` gives with the dequantized weight; but on a CPU a large 1x1 kernel on few pixels
    is ``lut_linear``, the weight packed and exact. Gradients reach x, bias, w.levels and w.scale.

    Args:
        x: [B, C, H, W] or [C, H, W], float.
        w: a packed weight [N, C / groups, kh, kw].
        bias: [N], float, or None.
        stride, padding, dilation, groups: as in ``F.conv2d``.

    Raises:
        TypeError: x or bias not a float tensor, w not a LutWeight.
        ValueError: x or w of another shape, bias not [N], two devices.
    """
    if len(op.check_weight("lut_conv2d", w).shape) != 4:
        raise ValueError(f"lut_conv2d: the weight must have shape [N, C / groups, kh, kw], got {list(w.shape)}")
    return conv2d(
        x, w.codes, w.levels, w.scale, bias, stride, padding, dilation, groups,
        bits=w.bits, group_size=w.group_size, shape=w.shape,
    )  # fmt: skip


def conv2d(
    x: Tensor,
    codes: Tensor,
    levels: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, ...],
    padding: int | tuple[int, ...] | str,
    dilation: int | tuple[int, ...],
    groups: int,
    *,
    bits: int,
    group_size: int,
    shape: tuple[int, ...],
) -> Tensor:
    """``lut_conv2d`` on the fields of a LutWeight of ``shape``: what a module that holds them calls."""
    op.check_x("lut_conv2d", x)
    channels = shape[1] * groups
    if x.dim() not in (3, 4) or x.shape[-3] != channels:
        raise ValueError(f"lut_conv2d: x must have shape [B, C={channels}, H, W] or [C, H, W], got {list(x.shape)}")
    if x.device != codes.device:
        raise ValueError(f"lut_conv2d: x and the weight must be on one device, got {x.device} and {codes.device}")
    op.check_bias("lut_conv2d", bias, shape[0], codes.device)
    n, k = matrix_shape(shape)
    if _is_matmul(x, shape, stride, padding, dilation, groups):
        y = op.linear(x.movedim(-3, -1), codes, levels, scale, bias, bits=bits, group_size=group_size, n=n, k=k)
        y = y.movedim(-1, -3)  # channels_last, where x may be too
        last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        return y if last else y.contiguous()
    weight = op.weight(codes, levels, scale, bits, group_size, shape, n, k, x.dtype, None)
    return F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, padding, dilation, groups)


def _is_matmul(x, shape, stride, padding, dilation, groups) -> bool:
    """Whether a packed matmul does this convolution, and faster; a compiled graph serves images of any size.

    What F.conv2d refuses is left to it.
    """

    def pair(v) -> tuple:
        return (v, v) if type(v) is int else tuple(v) if isinstance(v, tuple | list) else ()

    if torch.compiler.is_compiling() or x.device.type != "cpu" or groups != 1 or tuple(shape[2:]) != (1, 1):
        return False
    if pair(stride) != (1, 1):
        return False
    if padding not in ("valid", "same") and pair(padding) != (0, 0):
        return False
    if len(pair(dilation)) != 2 or min(pair(dilation)) < 1:
        return False
    few = x.numel() <= _FEW_PIXELS * shape[1] and math.prod(shape) >= _LARGE
    return few and backends.resolve("lut_linear", x, None) == "cpu"
