"""Fake-quantizers for training: float tensor in, float tensor on a grid out, gradients through."""

from torch import Tensor

from .ops.asq import op as _asq
from .ops.channel_error.op import channel_error
from .ops.cpq import op as _cpq
from .ops.daq import op as _daq
from .ops.dropbits import op as _dropbits
from .ops.grids import Hardened
from .ops.lsq import op as _lsq
from .ops.post import op as _post
from .ops.soft_assign import op as _soft_assign
from .ops.soft_assign.dq import dq

cpq, hard_concrete, bit_penalty = _cpq.cpq, _dropbits.hard_concrete, _dropbits.bit_penalty
lsq = _lsq.lsq
daq = _daq.daq
asq = _asq.asq
post, post_levels = _post.post, _post.post_levels
soft_assign = _soft_assign.soft_assign

_HARDEN = {
    "cpq": _cpq.harden,
    "daq": _daq.harden,
    "lsq": _lsq.harden,
    "post": _post.harden,
    "soft_assign": _soft_assign.harden,
}


def harden(method: str, x: Tensor, *parameters: Tensor, **options) -> Hardened:
    """What training's forward used, as codes: ``harden("lsq", w, step, bits=4)`` for ``lsq(w, step, bits=4)``.

    Args:
        method: name of the quantizer, e.g. "lsq" or "post".
        x, parameters, options: as the quantizer takes them (without gradient options and backend).

    Returns:
        codes uint8 of x's shape, levels float32 [K], scale float32 [P], such that
        ``levels[codes] * scale`` of each block, in float32, equals the quantizer's output bit for bit.

    Raises:
        ValueError: unknown method, x or a parameter is not finite, a parameter is not positive; TypeError and
        ValueError as the quantizer.
    """
    if method not in _HARDEN:
        raise ValueError(f"harden: method must be one of {', '.join(_HARDEN)}, got {method!r}")
    for name, t in [("x", x), *((f"parameter {i}", p) for i, p in enumerate(parameters))]:
        if isinstance(t, Tensor) and not t.isfinite().all():
            raise ValueError(f"harden: {name} must be finite, got {int((~t.isfinite()).sum())} values that are not")
    hardened = _HARDEN[method](x, *parameters, **options)
    if not (hardened.scale > 0).all():
        raise ValueError(f"harden: every scale must be positive, got {hardened.scale.min().item():g}")
    return hardened


__all__ = [
    "Hardened",
    "asq",
    "bit_penalty",
    "channel_error",
    "cpq",
    "daq",
    "dq",
    "hard_concrete",
    "harden",
    "lsq",
    "post",
    "post_levels",
    "soft_assign",
]
