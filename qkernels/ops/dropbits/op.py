"""DropBits: CPQ with gates on groups of levels (Lee et al. 2021, arXiv:2109.02100), and where the gates come from."""

import math

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops.function import call, is_exporting, once_differentiable

from . import reference

# The hard concrete distribution (Louizos et al. 2018, arXiv:1712.01312): its temperature, and the interval that a
# sigmoid is stretched to before it is clamped to [0, 1].
_BETA, _GAMMA, _ZETA = 2 / 3, -0.1, 1.1

_fwd = backends.define(
    "dropbits_fwd(Tensor x, Tensor step, Tensor sigma, Tensor keep, int bits, str backend) -> Tensor",
    fake=lambda x, step, sigma, keep, bits, backend: torch.empty_like(x),
    package=__package__,
    reference=reference.dropbits,
)
_bwd = backends.define(
    "dropbits_bwd(Tensor g, Tensor x, Tensor step, Tensor sigma, Tensor keep, int bits, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    fake=lambda g, x, step, sigma, keep, bits, backend: tuple(torch.empty_like(t) for t in (x, step, sigma, keep)),
    package=__package__,
)


class _DropBits(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, step, sigma, keep, bits, backend):
        return _fwd(x.contiguous(), step.contiguous(), sigma.contiguous(), keep.contiguous(), bits, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, step, sigma, keep, ctx.bits, ctx.backend = inputs
        ctx.save_for_backward(x, step, sigma, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        grads = _bwd(g.contiguous(), *(t.contiguous() for t in ctx.saved_tensors), ctx.bits, ctx.backend)
        return *grads, None, None


def dropbits(x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int, backend: str | None) -> Tensor:
    """``cpq`` with gates, after its checks: step, sigma float32 [P]; see ``qkernels.cpq``."""
    keep = check_keep(x, keep, bits)
    if backend is None and is_exporting():  # a graph for inference, on whatever device it will run
        return _fwd(x.contiguous(), step.contiguous(), sigma.contiguous(), keep.contiguous(), bits, "auto")
    backend = backends.resolve("dropbits", x, backend)
    if backend == "reference":
        return reference.dropbits(x, step, sigma, keep, bits)
    return call(_DropBits, _DropBits.forward, x, step, sigma, keep, bits, backend)


def harden(x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int) -> reference.Hardened:
    """The codes, levels and scale of ``dropbits``; the grid ends at the outermost level that is kept.

    From the values of the kernel that trained: where two codes are as likely but for rounding, backends may differ.
    """
    step, sigma, keep = step.detach(), sigma.detach(), check_keep(x, keep, bits).detach()
    return reference.harden(dropbits(x.detach().float(), step, sigma, keep, bits, None), step, keep, bits)


def check_keep(x: Tensor, keep: Tensor, bits: int) -> Tensor:
    """keep as float32. TypeError or ValueError unless it is a float tensor of one of the two lengths, on x's device."""
    if not isinstance(keep, Tensor):
        raise TypeError(f"cpq: keep must be a Tensor, got {type(keep).__name__}")
    if not keep.is_floating_point():
        raise TypeError(f"cpq: keep must be a float tensor, got {keep.dtype}")
    lengths = sorted({bits - 1, 2 ** (bits - 1) - 1})
    if keep.dim() != 1 or keep.shape[0] not in lengths:
        wanted = " or ".join(f"[{n}]" for n in lengths)
        raise ValueError(f"cpq: keep must have shape {wanted} at {bits} bits, got {list(keep.shape)}")
    if keep.device != x.device:
        raise ValueError(f"cpq: x and keep must be on one device, got {x.device} and {keep.device}")
    return keep.to(torch.float32)


def hard_concrete(logits: Tensor, *, seed: int | Tensor, training: bool = True) -> Tensor:
    """Gates in [0, 1] for ``cpq``'s keep: samples of the hard concrete distribution, one a logit, with gradients.

        s = sigmoid((log U - log(1 - U) + logits) / (2 / 3)),  U uniform     (training)
        s = sigmoid(logits)                                                  (else)
        gate = clamp(1.2 s - 0.1, 0, 1)

    A gate is 0 with probability 1 - sigmoid(logit + 1.6) (``bit_penalty``). It is worked out in float64 and rounded, so
    that it is the same on every device; where it was clamped its gradient is 0.

    Args:
        logits: any shape, float; log of the odds to keep.
        seed: an int in [0, 2**63), or an int64 tensor of one value, which a compiled graph takes without compiling
            anew for each. Equal seeds give equal gates, on every device and in every process.
        training: whether to draw.

    Returns:
        float32, the shape of logits.

    Raises:
        TypeError: logits is not a float tensor; seed is neither an int nor an int64 tensor of one value.
        ValueError: seed is negative or 2**63 or more. (A tensor on a GPU is not looked at, which would wait for it: a
            negative seed there is one of the others.)

    Source: the gate, its constants (temperature 2/3, stretch -0.1 .. 1.1, U in [1e-6, 1 - 1e-6]) and the deterministic
    form are verified against the code of arXiv:1712.01312; that DropBits uses the same constants is inferred.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"hard_concrete: logits must be a float tensor, got {_kind(logits)}")
    if isinstance(seed, Tensor):
        if seed.numel() != 1 or seed.dtype != torch.int64:
            raise TypeError(
                f"hard_concrete: seed must be an int64 tensor of one value, got {seed.dtype} {list(seed.shape)}"
            )
    elif isinstance(seed, bool) or not isinstance(seed, int | torch.SymInt):
        raise TypeError(f"hard_concrete: seed must be an int or an int64 tensor, got {type(seed).__name__}")
    elif not 0 <= seed < 1 << 63:
        raise ValueError(f"hard_concrete: seed must be in [0, 2**63), got {seed}")
    wide = logits.to(torch.float64)
    if training:
        seed = torch.as_tensor(seed, dtype=torch.int64, device=logits.device).reshape(1)
        u = _uniform(seed, logits.numel(), "auto").reshape(logits.shape).clamp(1e-6, 1 - 1e-6)
        s = torch.sigmoid((u.log() - (1 - u).log() + wide) / _BETA)
    else:
        s = torch.sigmoid(wide)
    return (s * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1).to(torch.float32)


def bit_penalty(logits: Tensor) -> Tensor:
    """The expected number of levels that are kept: ``sum(sigmoid(logits - 2/3 log(0.1 / 1.1)))``, a scalar.

    The chance of each gate of ``hard_concrete`` not to be 0, added up; times a factor of your choice it is what the
    task loss gets to learn bit-widths (``qkernels.penalty`` for a whole model).

    Args:
        logits: any shape, float.

    Raises:
        TypeError: logits is not a float tensor.

    Source: the chance is verified against the code of arXiv:1712.01312; that arXiv:2109.02100 adds it up over levels
    without weights is inferred.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"bit_penalty: logits must be a float tensor, got {_kind(logits)}")
    return torch.sigmoid(
        logits.to(torch.promote_types(logits.dtype, torch.float32)) - _BETA * math.log(-_GAMMA / _ZETA)
    ).sum()


def _splitmix(seed: Tensor, count: int) -> Tensor:
    """float64 [count] in [0, 1): SplitMix64 of seed, int64 [1], and position, in integer operations only.

    A hash rather than torch's generators: those differ between devices, and hold a state.
    """
    if seed.device.type == "cpu" and seed.item() < 0:
        raise ValueError(f"hard_concrete: seed must be in [0, 2**63), got {seed.item()}")
    z = seed * _signed(0xD1342543DE82EF95)
    position = torch.arange(1, count + 1, dtype=torch.int64, device=seed.device)
    z = z + position * _signed(0x9E3779B97F4A7C15)  # wraps around
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    z = z ^ _shift(z, 31)
    return _shift(z, 11).to(torch.float64) * 2.0**-53


# An op, which a compiler does not look into: Inductor would compute it once more for the backward, from a seed that has
# moved on since.
_uniform = backends.define(
    "uniform(Tensor seed, SymInt count, str backend) -> Tensor",
    fake=lambda seed, count, backend: seed.new_empty(count, dtype=torch.float64),
    package=__package__,
    auto=_splitmix,
)


def _signed(v: int) -> int:
    return v - (1 << 64) if v >= 1 << 63 else v


def _shift(z: Tensor, n: int) -> Tensor:
    """z >> n of the unsigned 64-bit value."""
    return (z >> n) & ((1 << 64 - n) - 1)


def _kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
