"""The quantization error of every channel, as three sums that give it for any step near."""

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops import blocks

from . import reference

_op = backends.define(
    "channel_error(Tensor x, Tensor step, int qmin, int qmax, int dim, str backend) -> Tensor",
    fake=lambda x, step, qmin, qmax, dim, backend: step.new_empty(3, x.shape[dim]),
    package=__package__,
    reference=reference.channel_error,
)


@torch.no_grad()
def channel_error(
    x: Tensor, step: Tensor, *, bits: int, dim: int, signed: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``(A, T, U)``: for each channel the sums of ``x**2``, ``k x`` and ``k**2``, with ``k = round(clamp(x / step))``.

    One pass over x. The squared error of channel c, with these codes and a step D, is ``A - 2 D T + D**2 U``; weights
    w_c on the channels' errors are least at ``D = sum w T / sum w U``. It serves objectives that weigh the channels'
    errors against each other (arXiv:2012.13762: verified from its abstract is that quantizers which treat all channels
    equally favor the few of high variance, and that the errors of individual channels are taken into account; that
    this is done by such weights is inferred). No gradient: the sums are constants to autograd.

    Args:
        x: at least 1-D, float32 | float16 | bfloat16; computed in float32 whatever the dtype.
        step: [1], float, in units of x, positive. step <= 0 gives NaN.
        bits: 1 to 8 (signed: 2 to 8); the codes are 0 .. 2**bits - 1 (signed: -2**(bits-1) .. 2**(bits-1) - 1).
        dim: the dimension of x that numbers its C channels; negative ones count from the end.
        signed: whether the grid has negative levels.
        backend: "reference" | "cpu" | "cuda" | "triton"; None picks the fastest that can run.

    Returns:
        Three float32 tensors [C]. A NaN stays in its channel.

    Raises:
        TypeError: x or step is not a float tensor; bits or dim not an int.
        ValueError: bits or dim out of range, step not [1], two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    qmin, qmax = blocks.int_range("channel_error", bits, signed)
    _, (step,), _ = blocks.prepare("channel_error", x, step=step)
    if step.shape[0] != 1:
        raise ValueError(f"channel_error: step must have shape [1], got {list(step.shape)}")
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"channel_error: dim must be an int, got {type(dim).__name__}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"channel_error: dim must be a dimension of x {list(x.shape)}, got {dim}")
    backend = backends.resolve("channel_error", x, backend)
    sums = _op(x.contiguous(), step.contiguous(), qmin, qmax, dim % x.dim(), backend)
    return sums[0], sums[1], sums[2]
