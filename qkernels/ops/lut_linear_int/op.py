"""Integer activations times a packed weight whose levels are powers of sqrt(2) or integers: sums without a rounding."""

import math

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops.blocks import check_dense
from qkernels.ops.calibration import check_flag
from qkernels.ops.daq import op as daq
from qkernels.ops.grids import IntegerGrid
from qkernels.ops.lsq import op as lsq
from qkernels.pack import LutWeight, matrix_shape

from . import reference

_DTYPES = (torch.int8, torch.uint8, *backends.FLOATS)  # of x
FEW_ROWS = 8  # up to which integers pay without AVX-512
FEW_PRODUCTS = 1 << 21  # below which they do not: the call takes longer than it saves
FEW_OF_A_ROW = 1 << 24  # the same of one row with AVX-512 VNNI, which ``lut_linear`` multiplies in integers too
_op = backends.define(
    "lut_linear_int(Tensor x, Tensor step, int qmin, int qmax, Tensor? lower, Tensor? upper, int by, Tensor codes, "
    "Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, SymInt n, SymInt k, str backend) -> Tensor",
    fake=lambda x, step, *args: step.new_empty(x.shape[0], args[-3]),
    package=__package__,
)


def _split(levels):
    try:
        return reference.split(levels)
    except ValueError as error:
        raise ValueError(f"lut_linear_int: {error}") from None


@backends.kernel("lut_linear_int", "reference")
def _reference(x, step, qmin, qmax, lower, upper, by, codes, levels, scale, bias, bits, group_size, n, k):
    w = LutWeight(codes, levels, scale, bits, group_size, (n, k))
    x, steps = reference.integers(x, IntegerGrid(step, qmin, qmax, lower, upper, by))
    return reference.lut_linear_int(x, steps, w.unpack(), _split(levels), w.scales(), group_size, bias)


def _of_parts(x, step, qmin, qmax, lower, upper, by, codes, parts, scale, bias, bits, group_size, n, k):
    return torch.ops.qkernels_cpu.lut_linear_split.default(
        x, step, lower, upper, qmin, qmax, by, codes, *parts, scale, bias, bits, group_size, n, k
    )


if hasattr(torch.ops.qkernels_cpu, "lut_linear_split"):

    @backends.kernel("lut_linear_int", "cpu")
    def _cpu(x, step, qmin, qmax, lower, upper, by, codes, levels, *args):
        return _of_parts(x, step, qmin, qmax, lower, upper, by, codes, _split(levels), *args)


@backends.kernel("lut_linear_int", "auto")
def _auto(x, *args):
    return _op(x, *args, backends.resolve("lut_linear_int", x, None, _DTYPES))


def lut_linear_int(
    x: Tensor,
    step: Tensor,
    w: LutWeight,
    bias: Tensor | None = None,
    *,
    bits: int | None = None,
    signed: bool = True,
    bounds: tuple[Tensor, Tensor] | None = None,
    symmetric: bool = False,
    backend: str | None = None,
) -> Tensor:
    """``(x * step) @ W.T + bias`` for integer x and a weight on powers of sqrt(2), as POST has it, or on integers.

    A float x is quantized first, so that an activation quantizer and the product are one call:
        qk.lsq(x, step, bits=bits, signed=signed)     LSQ, and ASQ with a step for each sample
        qk.daq(x, *bounds, step, bits=bits, signed=signed, symmetric=symmetric)     DAQ, with bounds
    What is multiplied are their integers, DAQ's being 2 Q - N, symmetric Q - N / 2, unsigned Q.

    Levels that are integers (LSQ, CPQ, DAQ) are multiplied as they are, evenly spaced ones by their codes. A level
    2**-(k/2) with even k is an integer in units of the smallest, one with odd k sqrt(2) times one. So the products with
    integers are summed as two integers, without a rounding, and the result is
        y[m, n] = step[m] * sum over segments of  scale[n, group] * (sum of x * even  +  sqrt(2) * sum of x * odd)
    with sqrt(2) as 1.4140625 = 181/128, the constant of POST's levels; of integers there is the first sum only. A
    segment is up to 4096 columns of a group; what is in brackets is exact, and rounded to float32 once. The same bits
    on every backend and instruction set, for any number of rows and threads. (Derived from the levels; the paper,
    arXiv:2504.17263, speaks of a look-up table of products, which its authors' release has no code for.) step and the
    unit of the levels, a power of 2, are one float32 factor: digits are lost where that is below 1e-38.

    Nothing has gradients: not a float x either.

    Args:
        x: [..., K], int8 or uint8: activations in units of step. Of ``h = qk.harden("lsq", x, step, ...)`` they are
            ``h.codes`` if unsigned, else ``(h.codes.int() + qmin).to(torch.int8)``. Or float32 | float16 | bfloat16: to
            be quantized; a NaN makes its row NaN.
        step: [P], float, positive: the unit of x, or with bounds DAQ's scale; x's rows split into P equal blocks (1:
            one for all; ASQ has one a sample). step <= 0 gives NaN there.
        w: a packed weight [N, K] or [N, ...], of any width. Its levels are integers of a unit that is a power of 2, up
            to 255 and evenly spaced (LSQ, CPQ and DAQ of up to 8 bits) or up to 16, or 0 and +-2**(j/2), the largest at
            most 2**4 times the smallest (POST of up to 4 bits, any grid); what is not evenly spaced, up to 32 levels.
        bias: [N], float, or None.
        bits, signed: the grid of a float x (of others signed says nothing), as ``qk.lsq`` has it; bits 2 to 8
            (unsigned: 1 to 8). With bounds as ``qk.daq`` has it; bits 1 to 7 (symmetric: 2 to 8, unsigned: 1 to 8), as
            the integers must fit a byte.
        bounds: (lower, upper) of DAQ, each like step or of 1 value. upper <= lower gives NaN there.
        symmetric: with bounds: a signed grid that has a 0, as ``qk.daq`` has it.
        backend: "reference" | "cpu"; None: the fastest that can run, chosen at each call, in an exported graph too.

    Returns:
        [..., N], float32.

    Raises:
        TypeError: x not int8, uint8 or, with bits, float; bits not an int, signed or symmetric not a bool, bounds not a
            pair; step, a bound or bias not a float tensor; w not a LutWeight.
        ValueError: bits not as above; bits or bounds given for an integer x, symmetric without bounds or not signed;
            x's last dimension is not K, step not [P], a bound neither [P] nor [1], bias not [N], other levels, two
            devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    if not isinstance(w, LutWeight):
        raise TypeError(f"lut_linear_int: w must be a LutWeight, got {type(w).__name__}")
    n, k = matrix_shape(w.shape)
    if not isinstance(x, Tensor) or x.dtype not in _DTYPES:
        raise TypeError(
            "lut_linear_int: x must be an int8 or uint8 tensor, or a float32, float16 or bfloat16 one with bits=, "
            f"got {getattr(x, 'dtype', type(x))}"
        )
    check_dense("lut_linear_int", x)
    if x.is_floating_point() != (bits is not None):
        raise ValueError(f"lut_linear_int: bits goes with a float x, got bits={bits} and {x.dtype}")
    for name, flag in (("signed", signed), ("symmetric", symmetric)):
        check_flag("lut_linear_int", name, flag)
    if bounds is None and symmetric:
        raise ValueError("lut_linear_int: symmetric goes with bounds, got bounds=None")
    if bounds is not None and bits is None:
        raise ValueError(f"lut_linear_int: bounds go with a float x, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"lut_linear_int: x must have shape [..., K={k}], got {list(x.shape)}")
    rows = x if x.dim() == 2 and x.is_contiguous() else x.reshape(-1, k).contiguous()
    named = {"step": step} | ({} if bias is None else {"bias": bias})
    if bounds is not None:
        if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
            what = f"{len(bounds)} values" if isinstance(bounds, (tuple, list)) else type(bounds).__name__
            raise TypeError(f"lut_linear_int: bounds must be (lower, upper), got {what}")
        named["lower"], named["upper"] = bounds
    for name, t in named.items():
        if not isinstance(t, Tensor) or not t.is_floating_point():
            raise TypeError(
                f"lut_linear_int: {name} must be a float tensor, got {getattr(t, 'dtype', type(t).__name__)}"
            )
    if step.dim() != 1 or step.shape[0] == 0 or rows.shape[0] % step.shape[0]:
        raise ValueError(
            f"lut_linear_int: step must have shape [P], P dividing the {rows.shape[0]} rows, got {list(step.shape)}"
        )
    if bias is not None and bias.shape != (n,):
        raise ValueError(f"lut_linear_int: bias must have shape [N={n}], got {list(bias.shape)}")
    for name in ("lower", "upper") if bounds is not None else ():
        if named[name].shape not in ((1,), step.shape):
            raise ValueError(
                f"lut_linear_int: {name} must have shape [1] or [P={len(step)}], got {list(named[name].shape)}"
            )
    device = x.device
    if any(t.device != device for t in (w.codes, *named.values())):
        devices = ", ".join(sorted({str(t.device) for t in (x, w.codes, *named.values())}))
        raise ValueError(f"lut_linear_int: all tensors must be on one device, got {devices}")
    if backend is not None or not torch.compiler.is_compiling():  # a graph asks again at each call
        backend = backends.resolve("lut_linear_int", x, backend, _DTYPES)
    step, bias = step.detach().float().contiguous(), None if bias is None else bias.detach()
    if bits is None:
        grid = IntegerGrid(step, 0, 0)
    elif bounds is None:
        grid = lsq.integer_grid(step, bits=bits, signed=signed, name="lut_linear_int")
    else:
        limits = (bound.detach().float().expand(step.shape).contiguous() for bound in bounds)
        options = {"signed": signed, "symmetric": symmetric, "name": "lut_linear_int"}
        grid = daq.integer_grid(*limits, step, bits=bits, **options)
    args = (w.codes, w.levels.detach(), w.scale.detach(), bias, w.bits, w.group_size, n, k, backend or "auto")
    y = _op(rows.detach(), *grid, *args)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], n)


def linear(
    x: Tensor,
    grid: IntegerGrid,
    codes: Tensor,
    levels: Tensor,
    parts: reference.Levels,
    scale: Tensor,
    bias: Tensor | None,
    *,
    weight_bits: int,
    group_size: int,
    n: int,
    k: int,
) -> Tensor:
    """``lut_linear_int`` of a float x [..., k] on the fields of a LutWeight: for a module.

    parts: what ``split`` makes of the levels.
    grid: its tensors contiguous, without gradients.
    """
    rows = x if x.dim() == 2 and x.is_contiguous() else x.reshape(-1, k).contiguous()
    if backends.is_plain(x) and backends.asked() is None:
        y = _of_parts(rows, *grid, codes, parts, scale, bias, weight_bits, group_size, n, k)
    else:
        args = (rows, *grid, codes, levels, scale, bias, weight_bits, group_size, n, k)
        y = _op(*(t.detach() if isinstance(t, Tensor) else t for t in args), "auto")
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], n)


def pays(x: Tensor, n: int, parts: reference.Levels, bits: int) -> bool:
    """Whether ``linear`` is faster for such an x [..., k] than its quantizer and ``lut_linear``, as it was timed, from
    FEW_PRODUCTS on."""
    isa, rows = torch.ops.qkernels_cpu.lut_linear_int_isa(), math.prod(x.shape[:-1])
    if isa in ("amx", "avx512vnni"):
        return rows > 1 or x.numel() * n >= FEW_OF_A_ROW
    # Without AVX-512 VNNI, two sums (POST) and products of more than 16 bits take as long as floats, or longer.
    return (isa != "avx512" and rows <= FEW_ROWS) or (bits <= 4 and parts.b == 0)


def split(levels: Tensor) -> reference.Levels:
    """What the CPU kernels take for a weight of such levels.

    Raises:
        ValueError: why they cannot multiply it.
    """
    if "cpu" not in backends.backends_of("lut_linear_int"):
        raise ValueError("the compiled kernels are not built")
    if levels.device.type != "cpu":
        raise ValueError(f"the weight must be on a CPU, got {levels.device}")
    return reference.split(levels)
