"""The block rule, once for every quantizer.

A parameter is a 1-D float tensor of P values that splits x, in row-major order, into P equal contiguous blocks.
P = 1: per tensor; P = out_features: per row; P = numel / g: per group; P = batch: per sample.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def check_dense(name: str, x: Tensor) -> None:
    if x.layout != torch.strided:
        raise TypeError(f"{name}: x must be a dense tensor, of layout torch.strided, got {x.layout}")


def prepare(name: str, x: Tensor, **parameters: Tensor) -> tuple[Tensor, list[Tensor], Callable[[Tensor], Tensor]]:
    """Check x and its parameters; returns (x, parameters as float32 [P], restore).

    ``restore`` undoes on the result what was done to x: a channels_last x is handed over as its contiguous view. (Not
    when compiled: Inductor fails on the strides of such a view where sizes are symbolic, torch 2.13.)
    Each parameter has 1 or P values, with the largest as the common P; autograd sums the gradient of an expanded one.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: x must be a Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be a float tensor, got {x.dtype}")
    check_dense(name, x)
    for key, p in parameters.items():
        if not isinstance(p, Tensor):
            raise TypeError(f"{name}: {key} must be a Tensor of shape [P], got {type(p).__name__}")
        if not p.is_floating_point():
            raise TypeError(f"{name}: {key} must be a float tensor, got {p.dtype}")
        if p.dim() != 1:
            hint = f"; use {key}.reshape(1)" if p.dim() == 0 else ""
            raise ValueError(f"{name}: {key} must have shape [P], got {list(p.shape)}{hint}")
        if p.device != x.device:
            raise ValueError(f"{name}: x and {key} must be on one device, got {x.device} and {p.device}")
    P = max(p.shape[0] for p in parameters.values())
    for key, p in parameters.items():
        if p.shape[0] not in (1, P):
            raise ValueError(f"{name}: {key} must have 1 or P={P} values, got {p.shape[0]}")
    if P == 0 or x.numel() % P:
        raise ValueError(f"{name}: P must divide x.numel()={x.numel()}, got P={P}")
    values = [p if p.dtype is torch.float32 else p.to(torch.float32) for p in parameters.values()]
    values = [p if p.shape[0] == P else p.expand(P) for p in values]
    if not torch.compiler.is_compiling() and not x.is_contiguous() and P in (1, x.shape[0] if x.dim() else 1):
        last = _CHANNELS_LAST.get(x.dim())
        if last is not None and x.is_contiguous(memory_format=last):
            return x.movedim(1, -1), values, lambda y: y.movedim(-1, 1)
    return x, values, _as_it_is


def _as_it_is(y: Tensor) -> Tensor:
    return y


def prepare_levels(
    name: str, x: Tensor, levels: Tensor, **parameters: Tensor
) -> tuple[Tensor, Tensor, list[Tensor], Callable[[Tensor], Tensor]]:
    """``prepare`` for ops with a codebook: levels [K], or [P, K] with a row a block; K of 2 to 256.

    Returns (x, levels as float32 [P, K], the other parameters as float32 [P], restore).
    """
    if not isinstance(levels, Tensor):
        raise TypeError(f"{name}: levels must be a Tensor of shape [K] or [P, K], got {type(levels).__name__}")
    if levels.dim() not in (1, 2) or not 2 <= levels.shape[-1] <= 256:
        raise ValueError(f"{name}: levels must have shape [K] or [P, K], K of 2 to 256, got {list(levels.shape)}")
    rows = levels if levels.dim() == 2 else levels[None]
    x, (_, *values), restore = prepare(name, x, levels=rows[:, 0], **parameters)
    rows = rows.to(torch.float32)
    P = values[0].shape[0]
    return x, rows if rows.shape[0] == P else rows.expand(P, -1), values, restore


def int_range(name: str, bits: int, signed: bool) -> tuple[int, int]:
    """(smallest, largest) code of a ``bits``-bit integer grid."""
    least = 2 if signed else 1
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"{name}: bits must be an int, got {type(bits).__name__}")
    if not least <= bits <= 8:
        raise ValueError(
            f"{name}: bits must be between {least} and 8 ({'signed' if signed else 'unsigned'}), got {bits}"
        )
    # powers, not shifts: torch 2.11 compiles no shift where bits is symbolic
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
