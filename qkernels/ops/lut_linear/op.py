"""Matmul with packed weights: activations times ``levels[code] * scale``, and the packed weight as a plain tensor.

Without a backend asked for, the graph holds "auto", which each call resolves anew, so that a graph exported on a CPU
runs on a GPU. A backward is plain PyTorch over a few rows of the weight at a time, for all backends.
"""

import math
import os
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from qkernels import backends
from qkernels.ops.blocks import check_dense
from qkernels.ops.function import autocast, call, no_autocast, once_differentiable
from qkernels.pack import PLANES, LutWeight, matrix_shape, plane_shape, unpack_t16

from . import reference
from .plan import cached_rows, chunk_rows, fills, pick

_linear = backends.define(
    "lut_linear(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, "
    "SymInt n, SymInt k, str backend) -> Tensor",
    fake=lambda x, codes, levels, scale, bias, bits, group_size, n, k, backend: x.new_empty(x.shape[0], n),
    package=__package__,
)
_dequantize = backends.define(
    "lut_dequantize(Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, SymInt n, SymInt k, "
    "ScalarType dtype, str backend) -> Tensor",
    fake=lambda codes, levels, scale, bits, group_size, n, k, dtype, backend: levels.new_empty(n, k, dtype=dtype),
    package=__package__,
)
_linear_bwd = backends.define(
    "lut_linear_bwd(Tensor g, Tensor x, Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, "
    "SymInt n, SymInt k, bool of_levels, bool of_scale, str backend) -> (Tensor, Tensor)",
    fake=lambda g, x, codes, levels, scale, *sizes: _empty_table(levels, scale, *sizes[-3:-1]),
    package=__package__,
)
_dequantize_bwd = backends.define(
    "lut_dequantize_bwd(Tensor g, Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, SymInt n, "
    "SymInt k, bool of_levels, bool of_scale, str backend) -> (Tensor, Tensor)",
    fake=lambda g, codes, levels, scale, *sizes: _empty_table(levels, scale, *sizes[-3:-1]),
    package=__package__,
)

_direct = backends.direct("lut_linear")

_CHUNK = 1 << 22  # elements of a float32 weight that exist at a time: 16 MiB
_MANY_ROWS = 512  # of x, from where decoding the weight once and the library's matmul are faster than the packed kernel


@backends.kernel("lut_dequantize", "reference")
def _reference_dequantize(codes, levels, scale, bits, group_size, n, k, dtype=torch.float32):
    return LutWeight(codes, levels, scale, bits, group_size, (n, k)).dequantize().to(dtype)


@backends.kernel("lut_linear", "reference")
def _reference_linear(x, codes, levels, scale, bias, bits, group_size, n, k):
    return reference.lut_linear(x, _reference_dequantize(codes, levels, scale, bits, group_size, n, k), bias)


def _linear_table(g, x, codes, levels, scale, bits, group_size, n, k, of_levels, of_scale):
    """(d levels, d scale) of lut_linear for g [M, N] and x [M, K]: the weight's gradient g^T x, some rows at a time."""
    dtype = _factor_dtype(g)
    g, x = g.to(dtype), x.to(dtype)

    def of_rows(rows: slice) -> Tensor:
        with no_autocast(x):
            return _product(g[:, rows].T, x)

    return _table(of_rows, codes, levels, scale, bits, group_size, n, k, of_levels, of_scale)


def _dequantize_table(g, codes, levels, scale, bits, group_size, n, k, of_levels, of_scale):
    """(d levels, d scale) of lut_dequantize for g [N, K]."""
    return _table(lambda rows: g[rows], codes, levels, scale, bits, group_size, n, k, of_levels, of_scale)


def _table(of_rows, codes, levels, scale, bits, group_size, n, k, of_levels, of_scale) -> tuple[Tensor, Tensor]:
    """(d levels, d scale) as asked for, given the gradient dW of rows of the weight, [R, K].

    d levels[c] = sum of dW * scale where the code is c;  d scale[n, group] = sum over the group of dW * level. The sums
    are float64 and have one order.
    """
    d_levels, d_scale = _empty_table(levels, scale, of_levels, of_scale)
    totals, G = d_levels.new_zeros(d_levels.shape, dtype=torch.float64), scale.shape[1]
    for rows, part, scales in _stripes(codes, scale, bits, n, k, _CHUNK // 4):  # several tensors of so many elements
        R = rows.stop - rows.start
        dw, code = of_rows(rows), unpack_t16(part, R, k, bits).flatten()
        if of_scale:
            level = levels.index_select(0, code.int()).view(R, k)
            sums = (dw * level).view(R, G, -1).sum(-1, dtype=torch.float64)  # [R, G]
            stripes = F.pad(sums, (0, 0, 0, -R % 16)).view(-1, 16, G).transpose(1, 2)
            d_scale[rows.start // 16 : -(-rows.stop // 16)] = stripes
        if of_levels:
            by_row = scales.transpose(1, 2).flatten(0, 1)[:R, :, None]  # [R, G, 1]
            totals += _sum_by_code((dw.view(R, G, -1) * by_row).flatten(), code, levels.shape[0])
    return d_levels.copy_(totals), d_scale


def _empty_table(levels: Tensor, scale: Tensor, of_levels: bool, of_scale: bool) -> tuple[Tensor, Tensor]:
    """Like levels and scale; of no elements where not asked for."""
    return (torch.empty_like(levels) if of_levels else levels.new_empty(0),
            torch.empty_like(scale) if of_scale else scale.new_empty(0))  # fmt: skip


def _sum_by_code(values: Tensor, codes: Tensor, n_levels: int) -> Tensor:
    """float64 [n_levels]; in one order, and what is not finite stays with its code."""
    if values.device.type == "cpu":
        return torch.bincount(codes, values.double(), minlength=n_levels)
    # bincount adds atomically there
    return torch.stack([torch.where(codes == c, values, 0).sum(dtype=torch.float64) for c in range(n_levels)])


for _backend in (*backends.NAMES, "auto"):  # a training step's time is in the product g^T x, which is the library's
    backends.kernel("lut_linear_bwd", _backend)(_linear_table)
    backends.kernel("lut_dequantize_bwd", _backend)(_dequantize_table)


def _factor_dtype(x: Tensor) -> torch.dtype:
    """Of both factors of a product with x: float32, in which W is exact; or float64. On a GPU, whose matrix units take
    only these, the dtype of a 16-bit x: W is rounded to it."""
    sixteen = _on_gpu(x) and not torch._C._are_functorch_transforms_active()  # vmap has no rule for _product's sums
    return x.dtype if sixteen else torch.promote_types(x.dtype, torch.float32)


def _on_gpu(x: Tensor) -> bool:
    return x.is_cuda


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32 (of float64 factors in it): sums of 16-bit factors are not rounded to their dtype."""
    return a @ b if a.element_size() > 2 else torch.mm(a, b, out_dtype=torch.float32)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:  # not in place: vmap has no rule for that
    return torch.addmm(to, a, b) if a.element_size() > 2 else to + _product(a, b)


def _chunked_linear(x, codes, levels, scale, bias, bits, group_size, n, k, backend):
    """For many rows: a part of the weight as floats, made by ``backend``, and the library's matmul."""
    y, dtype = x.new_empty(x.shape[0], n), _factor_dtype(x)
    if x.shape[0] == 0:
        return y
    factor, most = x.to(dtype), chunk_rows(x.shape[0], k, _sms(x.device)) if dtype.itemsize == 2 else None
    with no_autocast(x):
        for rows, weight in _row_chunks(codes, levels, scale, bits, group_size, n, k, backend, dtype, most):
            own = None if bias is None else bias[rows]
            if dtype.itemsize > 2:
                y[:, rows] = F.linear(factor, weight, None if own is None else own.to(dtype))
            elif (own is None or own.dtype == dtype) and fills(x.shape[0], weight.shape[0], _sms(x.device)):
                y[:, rows] = F.linear(factor, weight, own)
            else:  # the library may split such sums and round their parts, and would round a wider bias
                total = _product(factor, weight.T)
                y[:, rows] = total if own is None else total + own
    return y


if "cpu" in backends.backends_of("lut_linear"):
    _cpu_op = torch.ops.qkernels_cpu.lut_linear.default

    @backends.kernel("lut_dequantize", "cpu")
    def _cpu_dequantize(codes, levels, scale, bits, group_size, n, k, dtype):
        return torch.ops.qkernels_cpu.lut_dequantize(codes, levels, scale, bits, group_size, n, k).to(dtype)

    @backends.kernel("lut_linear", "cpu")
    def _cpu_linear(x, codes, levels, scale, bias, bits, group_size, n, k):
        if x.shape[0] < _MANY_ROWS or _by_instructions(x, levels, bits):
            return _cpu_op(x, codes, levels, scale, bias, bits, group_size, n, k)
        return _chunked_linear(x, codes, levels, scale, bias, bits, group_size, n, k, "auto")


def _by_instructions(x: Tensor, levels: Tensor, bits: int) -> bool:
    """Whether many rows are faster by the processor's instructions for bfloat16 than as the library's matmul.

    On matrix tiles rows of 16 bits, and of float32 if levels are bfloat16 values. On AVX-512 BF16 rows and levels that
    are, those of 8 bits evenly spaced.
    """
    isa = torch.ops.qkernels_cpu.isa("")
    if isa == "amx" and x.dtype != torch.float32:
        return True
    if isa != "amx" and (isa != "avx512bf16" or x.dtype != torch.bfloat16):
        return False
    if isa != "amx" and bits == 8 and not bool(((steps := levels.diff()) == steps[:1]).all()):
        return False
    return torch.equal(levels.bfloat16().float(), levels)


def _cuda_linear(x, codes, levels, scale, bias, bits, group_size, n, k):
    plan = pick(x.shape[0], n, k, bits, x.dtype, _sms(x.device), group_size=group_size, wgmma=_wgmma(x.device))
    args = (x, codes, levels, scale, bias, bits, group_size, n, k)
    if plan.kernel == "dequantize":
        return _chunked_linear(*args, "cuda")
    if plan.kernel == "prefill":
        return torch.ops.qkernels_cuda.lut_prefill(*args, plan.splits, _early(x.device))
    return torch.ops.qkernels_cuda.lut_decode(*args, plan.stripes, plan.splits, plan.warps, _early(x.device))


def _cuda_dequantize(codes, levels, scale, bits, group_size, n, k, dtype):
    like = levels.new_empty(0, dtype=dtype if dtype in backends.FLOATS else torch.float32)
    return torch.ops.qkernels_cuda.lut_dequantize(like, codes, levels, scale, bits, group_size, n, k).to(dtype)


if hasattr(torch.ops.qkernels_cuda, "lut_decode"):
    backends.kernel("lut_linear", "cuda")(_cuda_linear)
    backends.kernel("lut_dequantize", "cuda")(_cuda_dequantize)


@cache
def _sms(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@backends.kernel("lut_dequantize", "auto")
def _auto_dequantize(codes, levels, *args):
    return backends.fastest("lut_dequantize", levels)(codes, levels, *args)


@backends.kernel("lut_linear", "auto")
def _auto_linear(x, *args):
    return backends.fastest("lut_linear", x)(x, *args)


def _wgmma(device: torch.device) -> bool:
    """Whether the kernel for Hopper's wgmma may run: on request (QKERNELS_WGMMA=1), until a GPU has shown it right."""
    return os.environ.get("QKERNELS_WGMMA") == "1" and _capability(device) == (9, 0)


def _early(device: torch.device) -> bool:
    """Whether a kernel may start, and read codes, while the one before it ends (programmatic dependent launch): on
    request (QKERNELS_PDL=1), until a GPU has shown it right; on Hopper, as the code for others does not wait."""
    return os.environ.get("QKERNELS_PDL") == "1" and _capability(device) == (9, 0)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def save(ctx, x: Tensor, codes: Tensor, levels: Tensor, scale: Tensor, bias: Tensor | None) -> None:
    """For the backward of a product with these inputs first: the packed weight, and x if levels or scale train."""
    ctx.bias_dtype = None if bias is None else bias.dtype
    trains = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
    ctx.save_for_backward(codes, levels, scale, x if trains else None)


class _LutLinear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, codes, levels, scale, bias, bits, group_size, n, k, backend):
        return _linear(x, codes, levels, scale, bias, bits, group_size, n, k, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.bits, ctx.group_size, _, _, _ = inputs
        save(ctx, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        wide = torch.promote_types(g.dtype, torch.float32)
        codes, levels, scale, x = ctx.saved_tensors
        sizes = (ctx.bits, ctx.group_size, g.shape[1], scale.shape[1] * ctx.group_size)
        dx = db = d_levels = d_scale = None
        if ctx.needs_input_grad[0]:
            dx = _times_weight(g, codes, levels, scale, *sizes, wide).to(g.dtype)
        if x is not None:
            of = ctx.needs_input_grad[2:4]
            table = _linear_bwd(g, x, codes, levels, scale, *sizes, *of, "auto")
            d_levels, d_scale = (t if needed else None for t, needed in zip(table, of, strict=True))
        if ctx.needs_input_grad[4]:
            db = g.sum(0, dtype=wide).to(ctx.bias_dtype)
        return dx, None, d_levels, d_scale, db, None, None, None, None, None


class _LutDequantize(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(codes, levels, scale, bits, group_size, n, k, dtype, backend):
        return _dequantize(codes, levels, scale, bits, group_size, n, k, dtype, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        codes, levels, scale, ctx.bits, ctx.group_size, *_ = inputs
        ctx.save_for_backward(codes, levels, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        of = ctx.needs_input_grad[1:3]
        g = g.contiguous().to(torch.promote_types(g.dtype, torch.float32))
        table = _dequantize_bwd(g, *ctx.saved_tensors, ctx.bits, ctx.group_size, *g.shape, *of, "auto")
        d_levels, d_scale = (t if needed else None for t, needed in zip(table, of, strict=True))
        return None, d_levels, d_scale, None, None, None, None, None, None


def _times_weight(g, codes, levels, scale, bits, group_size, n, k, wide) -> Tensor:
    """g [M, N] times the weight [N, K] -> [M, K] in dtype wide."""
    dx, dtype = g.new_zeros(g.shape[0], k, dtype=wide), _factor_dtype(g)
    most = cached_rows(k) if dtype.itemsize == 2 else None
    for rows, weight in _row_chunks(codes, levels, scale, bits, group_size, n, k, dtype=dtype, most=most):
        dx = _add_product(dx, g[:, rows].to(dtype), weight)
    return dx


def _row_chunks(
    codes, levels, scale, bits, group_size, n, k, backend="auto", dtype=torch.float32, most=None
) -> Iterator[tuple[slice, Tensor]]:
    """(rows, weight[rows] as floats [rows, K]), one after another: up to ``most`` rows are float at a time.

    The weight is the same to the bit on every backend.
    """
    for rows, part, scales in _stripes(codes, scale, bits, n, k, most * k if most else _CHUNK):
        yield rows, _dequantize(part, levels, scales, bits, group_size, rows.stop - rows.start, k, dtype, backend)


def _stripes(codes, scale, bits, n, k, elements) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows, codes[rows], scale[rows]) for about ``elements`` of the weight at a time."""
    planes = [plane_shape(n, k, p) for p in PLANES[bits]]
    sizes = [512 * math.prod(shape) for shape in planes]
    stripes = [p.view(shape[0], -1) for p, shape in zip(codes.split(sizes), planes, strict=True)]  # [N/16, bytes]
    rows = max(elements // k // 16, 1) * 16
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        part = slice(start // 16, -(-stop // 16))
        yield slice(start, stop), torch.cat([plane[part].flatten() for plane in stripes]), scale[part]


def linear(
    x: Tensor,
    codes: Tensor,
    levels: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    *,
    bits: int,
    group_size: int,
    n: int,
    k: int,
    backend: str | None = None,
) -> Tensor:
    """``lut_linear`` on the fields of a LutWeight of n rows and k columns: what a module that holds them calls."""
    if backend is None and not is_compiling():
        y = _direct(x, codes, levels, scale, bias, bits, group_size, n, k, _MANY_ROWS)
        if y is not None:
            return y
    return _checked_linear(x, codes, levels, scale, bias, bits, group_size, n, k, backend)


def _checked_linear(x, codes, levels, scale, bias, bits, group_size, n, k, backend) -> Tensor:
    check_x("lut_linear", x)
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"lut_linear: x must have shape [..., K={k}], got {list(x.shape)}")
    if x.device != codes.device:
        raise ValueError(f"lut_linear: x and the weight must be on one device, got {x.device} and {codes.device}")
    check_bias("lut_linear", bias, n, codes.device)
    x = autocast(x)  # as F.linear does
    if backend is not None:
        backend = backends.resolve("lut_linear", x, backend)
    if backend == "reference":
        return _reference_linear(x, codes, levels, scale, bias, bits, group_size, n, k)
    if backend is None:  # a graph asks again at each call
        backend = "auto" if is_compiling() else backends.resolve("lut_linear", x, None)
    rows = (x if x.dim() == 2 else x.reshape(-1, k)).contiguous()
    y = call(_LutLinear, _linear, rows, codes, levels, scale, bias, bits, group_size, n, k, backend)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], n)


def lut_linear(x: Tensor, w: LutWeight, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """``y = x @ W.T + bias`` with ``W[n, k] = levels[code[n, k]] * scale[n, k // group_size]``; W stays packed.

    Accumulated in float32, rounded to x's dtype once; a scale multiplies sums of up to 128 products of x and levels, so
    that x or levels near the ends of float32 may overflow or lose digits where products with the weights themselves do
    not. On a CPU the order of the sums depends on the number of rows only in steps. Where they are not of integers, as
    below: one row, more, and 512 or more, which meet W in float32, a part of it at a time, in PyTorch's matmul; on AMX
    tiles one row, and more (for levels that are no bfloat16 values and x in 16 bits: up to 5, and more; of 8 bits,
    unevenly spaced and sums of three bfloat16 values, up to 12), and so by AVX-512 BF16 (by itself on AMD processors:
    x in bfloat16, levels that are bfloat16 values, of 8 bits evenly spaced). On these, products below 1e-27 may lose
    digits, or count as 0, beside larger ones.

    On a CPU, one row of x and levels of 2 bits or more that are evenly spaced multiples of one number, at most 255
    times it (LSQ, CPQ, DAQ), are multiplied in integers. So are more rows:
        - with AMX, in float32 all (512 and more: of levels that are bfloat16 values), in 16 bits up to 4 (8 of a W of
          8 bits); there W may have 1 bit, and of up to 4 bits any levels of at most 127 times that number (one row: of
          3 or 4);
        - with AVX-512 BF16 (by itself on AMD processors), where scales are for rows or for groups of a multiple of 128
          columns (W of 4 bits: 64; of 8 bits: any), up to 511 of float16, 5 of float32 (W of 3 bits: 4); of a W of
          8 bits up to 511 of float32, 8 of bfloat16.
    Sums of up to 128 products are exact then, so that a row has the same bits in all these calls. In each group, or 128
    columns of it, x is rounded for that, to multiples of at most 2**-29 of its largest value there: by less than
    float32 sums round, but where the largest values meet weights of 0. In 16 bits 2**-21 is enough: what is not below
    2**-11 of the largest stays as it is. (Rows where most values are below 2**-7 of the largest go as other levels do,
    and so do those with nothing but values below 1e-29; which way a row goes does not depend on those beside it.)

    Under autocast x is cast as for ``F.linear``.

    Gradients reach x (dx = g @ W), bias, and w.levels and w.scale where they require grad: with dW = g^T x
        dlevels[c] = sum of dW[n, k] * scale[n, k // group_size] where code[n, k] is c
        dscale[n, group] = sum over the group's k of dW[n, k] * levels[code[n, k]]
    W and dW are made a part at a time, of up to 16 MiB (on a GPU 128). x is saved for levels and scale only.

    W is never rounded to the dtype of x, but where said. On "cuda", up to 64 rows of float16 or bfloat16 meet levels in
    that dtype; a level that it cannot hold becomes a sum of two or three that it can, and the codes are read once for
    each. (Integers, POST's levels and others that fit cost nothing; a table learned in float32 takes up to three times
    as long, and an infinite x may then give NaN. In float16 that holds for levels of at least 2**-38 of the largest,
    in bfloat16 for all but the ends of float32.) A row of x gives the same bits in any batch of up to 64. More
    rows meet W, a part of it at a time, in PyTorch's matmul: in float32 that of float32 x, rounded to their dtype that
    of others, as ``F.linear`` with such a weight does (float16 holds up to 65504). With QKERNELS_WGMMA=1, up to 512
    rows on Hopper (sm_90) meet levels as few rows do, where scales are for groups of a multiple of 64 columns or for
    rows. With QKERNELS_PDL=1 these kernels start on Hopper while the one before them ends, which must not be what makes
    the codes. Gradients come from that matmul on a GPU, for 16-bit gradients with a W rounded to their dtype.

    Args:
        x: [..., K], float32 | float16 | bfloat16 (float64: reference only).
        w: a packed weight [N, K], or [N, ...] with K = the product of the rest.
        bias: [N], float, or None.
        backend: "reference" | "cpu" | "cuda" | "triton"; None: the fastest that can run, chosen at each call, in an
            exported graph too.

    Returns:
        [..., N], x's dtype. An x of no rows gives no rows.

    Raises:
        TypeError: x or bias not a float tensor, w not a LutWeight.
        ValueError: x's last dimension is not K, bias not [N], two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    if backend is None and not is_compiling() and isinstance(w, LutWeight):  # as in linear, which is a call more
        n, k = w.shape if len(w.shape) == 2 else matrix_shape(w.shape)
        y = _direct(x, w.codes, w.levels, w.scale, bias, w.bits, w.group_size, n, k, _MANY_ROWS)
        if y is not None:
            return y
    n, k = matrix_shape(check_weight("lut_linear", w).shape)
    return _checked_linear(x, w.codes, w.levels, w.scale, bias, w.bits, w.group_size, n, k, backend)


def lut_dequantize(w: LutWeight, dtype: torch.dtype = torch.float32, *, backend: str | None = None) -> Tensor:
    """The packed weight as a plain tensor of ``w.shape``: ``levels[code] * scale`` in float32, then the cast to dtype.

    The same bits on every backend. Gradients reach w.levels and w.scale where they require grad.

    Raises:
        TypeError: w is not a LutWeight, dtype not a float type.
        NotImplementedError: the requested backend cannot run this call.
    """
    n, k = matrix_shape(check_weight("lut_dequantize", w).shape)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"lut_dequantize: dtype must be a float type such as torch.float32, got {dtype!r}")
    return weight(w.codes, w.levels, w.scale, w.bits, w.group_size, w.shape, n, k, dtype, backend)


def weight(codes, levels, scale, bits, group_size, shape, n, k, dtype, backend) -> Tensor:
    """The weight of ``shape`` as a plain tensor; gradients reach levels and scale."""
    if backend is not None:
        backend = backends.resolve("lut_dequantize", levels, backend)
    args = (codes, levels, scale, bits, group_size, n, k, dtype, backend or "auto")
    return call(_LutDequantize, _dequantize, *args).reshape(shape)


def check_weight(name: str, w: LutWeight) -> LutWeight:
    if not isinstance(w, LutWeight):
        raise TypeError(f"{name}: w must be a LutWeight, got {type(w).__name__}")
    return w


def check_x(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: x must be a Tensor, got {type(x).__name__}")
    if x.dtype not in (*backends.FLOATS, torch.float64):
        raise TypeError(f"{name}: x must be a float32, float16, bfloat16 or float64 tensor, got {x.dtype}")
    check_dense(name, x)


def check_bias(name: str, bias: Tensor | None, n: int, device: torch.device) -> None:
    if bias is None:
        return
    if not isinstance(bias, Tensor) or not bias.is_floating_point():
        raise TypeError(f"{name}: bias must be a float tensor, got {getattr(bias, 'dtype', type(bias).__name__)}")
    if bias.shape != (n,):
        raise ValueError(f"{name}: bias must have shape [N={n}], got {list(bias.shape)}")
    if bias.device != device:
        raise ValueError(f"{name}: bias and the weight must be on one device, got {bias.device} and {device}")
