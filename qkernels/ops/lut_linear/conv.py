"""Convolution with packed weights: PyTorch's, on a part of the weight as floats at a time, or the packed matmul."""

import math
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from qkernels import backends
from qkernels.ops.function import autocast, call, once_differentiable
from qkernels.pack import LutWeight, matrix_shape

from . import op

# Pixels of y, of all images, up to which the packed matmul is about as fast as a 1x1 convolution or faster, as timed on
# AMX, AVX-512 and AVX2. It makes no weight, and the library reorders none, but x and y are transposed unless
# channels_last.
_FEW_PIXELS = 256  # in 16 bits
_FEW_FLOATS = 64  # in float32, but not more than one
_ELEMENTS = 1 << 15  # for each so many elements of the weight

_INTS = (int, torch.SymInt)


def lut_conv2d(
    x: Tensor,
    w: LutWeight,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """``F.conv2d`` with a packed weight, made in x's dtype for the call: above 4 M elements a part at a time.

    Up to 4 M elements it gives the bits of ``F.conv2d`` with the dequantized weight of x's dtype, which is rounded
    where x is float16 or bfloat16; above, sums may have another order. But on a CPU a 1x1 kernel without padding and
    groups, of any stride, is ``lut_linear``, whose weight is exact, where y has few pixels: of all images, in 16 bits
    up to 256 (any number where the processor has no instructions for the library's convolution), in float32 up to 64,
    and one for each 2**15 elements of the weight. Under autocast x is cast as for ``F.conv2d``.

    Gradients reach x, bias, w.levels and w.scale, once. No float weight is saved, and x for levels and scale only: the
    weight is made again, a part at a time. dx meets it as the forward did, in x's dtype or, for ``lut_linear``, in
    float32 and exact, and parts of dx are added in float32; dW is float32, and its sums as in ``lut_linear``.

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
    x = autocast(x)  # as F.conv2d does
    shape = tuple(len(range(size)) for size in shape)  # constants of a graph: symbolic ones may not reach a backward
    pairs = _pair(stride), _padding(padding, stride, dilation, shape), _pair(dilation)
    if (
        forward_ad._current_level >= 0
        or None in pairs
        or not isinstance(groups, _INTS)
        or groups < 1
        or shape[0] % groups
    ):
        weight = op.weight(codes, levels, scale, bits, group_size, shape, *matrix_shape(shape), x.dtype, None)
        return F.conv2d(x, weight, None if bias is None else bias.to(x.dtype), stride, padding, dilation, groups)
    stride, (top, bottom, left, right), dilation = pairs
    if (top, left) != (bottom, right):
        x = F.pad(x, (0, right - left, 0, bottom - top))
    image = x if x.dim() == 4 else x.unsqueeze(0)
    args = (image, codes, levels, scale, bias, bits, group_size, shape, stride, (top, left), dilation, groups, "auto")
    y = call(_LutConv2d, _conv2d, *args)
    return y if x.dim() == 4 else y.squeeze(0)


def _pair(v) -> tuple[int, int] | None:
    """What F.conv2d takes for a stride or a dilation, as two; None for what is left to it."""
    if type(v) is int:
        return (v, v)
    pair = tuple(v) if isinstance(v, tuple | list) else (v,)
    pair = pair * 2 if len(pair) == 1 else pair
    return pair if len(pair) == 2 and all(isinstance(i, _INTS) for i in pair) else None


def _padding(padding, stride, dilation, shape) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right); "same" has one row or column more at the end where they are odd."""
    if type(padding) is int:
        return (padding,) * 4
    if padding == "valid":
        return (0,) * 4
    if padding != "same":
        pair = _pair(padding)
        return None if pair is None else (pair[0], pair[0], pair[1], pair[1])
    if _pair(stride) != (1, 1) or _pair(dilation) is None:
        return None
    rows, columns = (d * (size - 1) for d, size in zip(_pair(dilation), shape[2:], strict=True))
    return rows // 2, rows - rows // 2, columns // 2, columns - columns // 2


def _forward(x, codes, levels, scale, bias, bits, group_size, shape, stride, padding, dilation, groups):
    layout = _layout(_is_last(x))
    if _is_matmul(x.device, x.dtype, x.shape, shape, stride, padding, dilation, groups):
        n, k = matrix_shape(shape)
        pixels = x[:, :, :: stride[0], :: stride[1]].movedim(1, -1)  # [B, H, W, C]
        y = op.linear(pixels, codes, levels, scale, bias, bits=bits, group_size=group_size, n=n, k=k).movedim(-1, 1)
        return y.contiguous(memory_format=layout)
    y, bias = None, None if bias is None else bias.to(x.dtype)
    for rows, channels, part, weight in _blocks(codes, levels, scale, bits, group_size, shape, groups, x.dtype):
        if weight.shape[0] == shape[0]:
            return F.conv2d(x, weight, bias, stride, padding, dilation, groups).contiguous(memory_format=layout)
        some = None if bias is None else bias[rows]
        block = F.conv2d(x[:, channels], weight, some, stride, padding, dilation, part)
        if y is None:
            size = (block.shape[0], shape[0], *block.shape[2:])
            y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
        y[:, rows] = block
    return y


def _backward(
    g, x, codes, levels, scale, bits, group_size, shape, size, last, stride, padding, dilation, groups, *of
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, d levels, d scale) as ``of`` asks for, without elements where it does not; for an x of ``size``."""
    packed = (codes, levels, scale, bits, group_size)
    wide, layout = torch.promote_types(g.dtype, torch.float32), _layout(last)

    def of_x() -> Tensor:
        dx, exact = None, _is_matmul(g.device, g.dtype, size, shape, stride, padding, dilation, groups)
        dtype = wide if exact else g.dtype
        like = torch.empty(size, dtype=dtype, device=g.device, memory_format=layout)
        for rows, channels, part, weight in _blocks(*packed, shape, groups, dtype):
            args = (g[:, rows].to(dtype), like[:, channels], weight, None, stride, padding, dilation, False, (0, 0))
            block, _, _ = torch.ops.aten.convolution_backward(*args, part, (True, False, False))
            if weight.shape[0] == shape[0]:
                return block.to(g.dtype).contiguous(memory_format=layout)
            if dx is None:
                dx = torch.zeros_like(like, dtype=wide)
            dx[:, channels] += block
        return dx.to(g.dtype)

    def of_rows(rows: slice) -> Tensor:
        parts = []
        for r, channels, part in _pieces(rows, shape, groups):
            weight = g.new_empty(r.stop - r.start, *shape[1:], dtype=wide)
            args = (g[:, r].to(wide), x[:, channels], weight, None, stride, padding, dilation, False, (0, 0))
            parts.append(torch.ops.aten.convolution_backward(*args, part, (False, True, False))[1].flatten(1))
        return torch.cat(parts) if parts[1:] else parts[0]

    dx = of_x() if of[0] else g.new_empty(0)
    if x is None:
        return dx, *op._empty_table(levels, scale, *of[1:])
    x = x.to(wide)
    return dx, *op._table(of_rows, *packed, *matrix_shape(shape), *of[1:])


def _blocks(codes, levels, scale, bits, group_size, shape, groups, dtype) -> Iterator[tuple]:
    """(rows, channels, groups, weight[rows]): convolutions of ``channels`` of x that give ``rows`` of y, one by one."""
    n, k = matrix_shape(shape)
    if n * k <= op._CHUNK:
        weight = op._dequantize(codes, levels, scale, bits, group_size, n, k, dtype, "auto")
        yield slice(0, n), slice(0, shape[1] * groups), groups, weight.view(shape)
        return
    for rows, weight in op._row_chunks(codes, levels, scale, bits, group_size, n, k, dtype=dtype):
        for part, channels, count in _pieces(rows, shape, groups):
            some = weight[part.start - rows.start : part.stop - rows.start]
            yield part, channels, count, some.view(-1, *shape[1:])


def _pieces(rows: slice, shape, groups) -> Iterator[tuple[slice, slice, int]]:
    """(rows, channels, groups) of convolutions that give ``rows``: whole groups, or part of one."""
    each, start = shape[0] // groups, rows.start
    while start < rows.stop:
        first, inside = divmod(start, each)
        count = 0 if inside else (rows.stop - start) // each
        stop = start + count * each if count else min(rows.stop, (first + 1) * each)
        count = max(count, 1)
        yield slice(start, stop), slice(first * shape[1], (first + count) * shape[1]), count
        start = stop


def _is_matmul(device, dtype, size, shape, stride, padding, dilation, groups) -> bool:
    """Whether a packed matmul does the convolution of an x of ``size``, and as fast. What F.conv2d refuses is not."""
    if device.type != "cpu" or groups != 1 or tuple(shape[2:]) != (1, 1) or tuple(padding) != (0, 0):
        return False
    if min(*stride, *dilation, *size[2:]) < 1 or dtype not in backends.FLOATS:
        return False
    pixels = size[0] * -(-size[2] // stride[0]) * -(-size[3] // stride[1])
    if dtype == torch.float32:
        few = pixels <= min(_FEW_FLOATS, math.prod(shape) // _ELEMENTS)
    else:
        few = pixels <= _FEW_PIXELS or not _library_has(dtype)
    return few and (backends.asked() or "cpu") == "cpu" and "cpu" in backends.backends_of("lut_linear")


@cache
def _library_has(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in these 16 bits here; PyTorch's own way is far slower than the packed matmul."""
    names = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, names[dtype])()


def _is_last(x: Tensor) -> bool:
    """Whether x [B, C, H, W] is channels_last by its strides, as F.conv2d sees it; vmap answers no other question."""
    _, C, H, W = x.shape
    return x.stride() == (H * W * C, 1, W * C, C) and x.stride() != (C * H * W, H * W, W, 1)


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _fake(x, codes, levels, scale, bias, bits, group_size, shape, stride, padding, dilation, groups, backend):
    y = F.conv2d(x, x.new_empty(shape), None, stride, padding, dilation, groups)
    # Not y.contiguous(...): it leaves the strides of images of one pixel, and without data they are not the kernel's.
    return torch.empty(y.shape, dtype=y.dtype, device=y.device, memory_format=_layout(_is_last(x)))


def _fake_bwd(g, x, codes, levels, scale, bits, group_size, shape, size, last, *rest):
    *_, of_x, of_levels, of_scale, _ = rest
    dx = torch.empty(size, dtype=g.dtype, device=g.device, memory_format=_layout(last)) if of_x else g.new_empty(0)
    return dx, *op._empty_table(levels, scale, of_levels, of_scale)


_conv2d = backends.define(
    "lut_conv2d(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, "
    "SymInt[] shape, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, str backend) -> Tensor",
    fake=_fake,
    package=__package__,
    auto=_forward,
)
_conv2d_bwd = backends.define(
    "lut_conv2d_bwd(Tensor g, Tensor? x, Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, "
    "SymInt[] shape, SymInt[] size, bool last, SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups, "
    "bool of_x, bool of_levels, bool of_scale, str backend) -> (Tensor, Tensor, Tensor)",
    fake=_fake_bwd,
    package=__package__,
    auto=_backward,
)


class _LutConv2d(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, codes, levels, scale, bias, bits, group_size, shape, stride, padding, dilation, groups, backend):
        return _conv2d(
            x, codes, levels, scale, bias, bits, group_size, shape, stride, padding, dilation, groups, backend
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, codes, levels, scale, bias, ctx.bits, ctx.group_size, ctx.shape, *ctx.options, _ = inputs
        ctx.size, ctx.last = x.shape, _is_last(x)
        op.save(ctx, x, codes, levels, scale, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        codes, levels, scale, x = ctx.saved_tensors
        needed, db = ctx.needs_input_grad, None
        of = (needed[0], needed[2], needed[3])
        grads = (None, None, None)
        if any(of):
            args = (ctx.bits, ctx.group_size, ctx.shape, ctx.size, ctx.last, *ctx.options, *of, "auto")
            grads = _conv2d_bwd(g, x, codes, levels, scale, *args)
        if needed[4]:
            db = g.sum((0, 2, 3), dtype=torch.promote_types(g.dtype, torch.float32)).to(ctx.bias_dtype)
        dx, d_levels, d_scale = (t if need else None for t, need in zip(grads, of, strict=True))
        return dx, None, d_levels, d_scale, db, *(None,) * 8
