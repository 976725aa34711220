"""Integer activations times a packed weight whose levels are powers of sqrt(2) or integers: sums without a rounding."""

import torch
from torch import Tensor

from qkernels import backends
from qkernels.pack import LutWeight, matrix_shape

from . import reference

_INTEGERS = (torch.int8, torch.uint8)
_WIDTHS = (4, 8)  # of codes that the CPU kernel reads; of 8 bits only codes below 32
_op = backends.define(
    "lut_linear_int(Tensor x, Tensor step, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, "
    "int group_size, SymInt n, SymInt k, str backend) -> Tensor",
    fake=lambda x, step, codes, levels, scale, bias, bits, group_size, n, k, backend: step.new_empty(x.shape[0], n),
    package=__package__,
)


@backends.kernel("lut_linear_int", "reference")
def _reference(x, step, codes, levels, scale, bias, bits, group_size, n, k):
    w = LutWeight(codes, levels, scale, bits, group_size, (n, k))
    return reference.lut_linear_int(x, step, w.unpack(), reference.split(levels), w.scales(), group_size, bias)


def _cpu(x, step, codes, levels, scale, bias, bits, group_size, n, k, vnni=True):
    split = reference.split(levels)
    return torch.ops.qkernels_cpu.lut_linear_split(
        x, step * split.unit, codes, split.even, split.odd, split.a, split.b, scale, bias, bits, group_size, n, k, vnni
    )


if hasattr(torch.ops.qkernels_cpu, "lut_linear_split"):
    backends.kernel("lut_linear_int", "cpu")(_cpu)


@backends.kernel("lut_linear_int", "auto")
def _auto(x, step, codes, levels, scale, bias, bits, *args):
    backend = backends.resolve("lut_linear_int", x, None, _INTEGERS)
    if backend == "cpu" and _unread(levels, bits):
        backend = "reference"
    return _op(x, step, codes, levels, scale, bias, bits, *args, backend)


def lut_linear_int(
    x: Tensor, step: Tensor, w: LutWeight, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """``(x * step) @ W.T + bias`` for integer x and a weight on powers of sqrt(2), as POST has it, or on integers.

    A level 2**-(k/2) with even k is an integer in units of the smallest, one with odd k sqrt(2) times one. So the
    products with integers are summed as two integers, without a rounding, and the result is
        y[m, n] = step[m] * sum over segments of  scale[n, group] * (sum of x * even  +  sqrt(2) * sum of x * odd)
    with sqrt(2) as 1.4140625 = 181/128, the constant of POST's levels. Levels that are integers (LSQ, CPQ, DAQ) have
    the first sum only. A segment is up to 4096 columns of a group; what is in brackets is exact, and rounded to float32
    once. The same bits on every backend and instruction set, for any number of rows and threads. No gradients. (Derived
    from the levels; the paper, arXiv:2504.17263, speaks of a look-up table of products, which its authors' release has
    no code for.)

    Args:
        x: [..., K], int8 or uint8: activations in units of step. Of ``h = qk.harden("lsq", x, step, ...)`` they are
            ``h.codes`` if unsigned, else ``(h.codes.int() + qmin).to(torch.int8)``.
        step: [P], float, positive: the unit of x; x's rows split into P equal blocks (1: one for all; ASQ has one a
            sample). step <= 0 gives NaN there.
        w: a packed weight [N, K] or [N, ...]. Its levels are integers up to 16 of a unit that is a power of 2 (LSQ, CPQ
            and DAQ of up to 4 bits), or 0 and +-2**(j/2), the largest at most 2**4 times the smallest (POST of up to 4
            bits, any grid).
        bias: [N], float, or None.
        backend: "reference" | "cpu" (codes of 4 bits, or of 8 bits with at most 32 levels; other codes take the
            reference, for which ``lut_linear`` is the faster one); None: the fastest that can run, chosen at each call,
            in an exported graph too.

    Returns:
        [..., N], float32.

    Raises:
        TypeError: x not int8 or uint8, step or bias not a float tensor, w not a LutWeight.
        ValueError: x's last dimension is not K, step not [P], bias not [N], other levels, two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    if not isinstance(w, LutWeight):
        raise TypeError(f"lut_linear_int: w must be a LutWeight, got {type(w).__name__}")
    n, k = matrix_shape(w.shape)
    if not isinstance(x, Tensor) or x.dtype not in _INTEGERS:
        raise TypeError(f"lut_linear_int: x must be an int8 or uint8 tensor, got {getattr(x, 'dtype', type(x))}")
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"lut_linear_int: x must have shape [..., K={k}], got {list(x.shape)}")
    rows = x.reshape(-1, k).contiguous()
    for name, t in (("step", step), ("bias", bias)):
        if t is None and name == "bias":
            continue
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
    if len(devices := {t.device for t in (x, step, w.codes, bias) if t is not None}) > 1:
        raise ValueError(
            f"lut_linear_int: all tensors must be on one device, got {', '.join(sorted(map(str, devices)))}"
        )
    if backend is not None:
        backend = backends.resolve("lut_linear_int", x, backend, _INTEGERS)
        if backend == "cpu" and (why := _unread(w.levels, w.bits)):
            raise NotImplementedError(f"lut_linear_int on {x.device}: cpu: {why}")
    steps = step.detach().float().repeat_interleave(rows.shape[0] // step.shape[0])
    steps = torch.where(steps > 0, steps, torch.nan)
    bias = None if bias is None else bias.detach()
    args = (w.codes, w.levels.detach(), w.scale.detach(), bias, w.bits, w.group_size, n, k, backend or "auto")
    return _op(rows, steps, *args).reshape(*x.shape[:-1], n)


def _unread(levels: Tensor, bits: int) -> str | None:
    """Why the CPU kernel cannot read these codes, or None."""
    if bits in _WIDTHS and levels.shape[0] <= 32:
        return None
    return f"codes must be of 4 bits, or of 8 with at most 32 levels, got {bits} bits and {levels.shape[0]} levels"
