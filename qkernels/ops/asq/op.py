"""ASQ: LSQ with a step that adapts to each sample (arXiv:2504.17263). It runs on the kernels of ``lsq``."""

from torch import Tensor

from qkernels.ops import blocks
from qkernels.ops.lsq import op as lsq

from . import reference


def asq(
    x: Tensor,
    step: Tensor,
    beta: Tensor,
    *,
    bits: int,
    signed: bool = False,
    grad_scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``round(clamp(x / s, qmin, qmax)) * s`` with s = step * beta, beta a factor of each sample (or token).

    signed: ``qmin, qmax = -2**(bits-1), 2**(bits-1) - 1``; unsigned: ``0, 2**bits - 1``.
    Gradients, with v = x / s and D = sum over the sample of  g * (round(v) - v  inside, the clipped code outside):
        dx = g where qmin <= v <= qmax, else 0    dstep = sum over samples of  beta D * grad_scale    dbeta = step D
    Formulas and gradients are those of the authors' release (SENGEL13/ASQ-POST, asq.py), which multiplies by
    step * beta where a summary of the paper prints step alone. beta's gradient has no factor there either.

    Args:
        x: any shape, float32 | float16 | bfloat16; computed in float32 whatever the dtype.
        step: [1] or [P], float, in units of x, positive; step <= 0 gives NaN in its block.
        beta: [P], float, positive: one a sample (P = batch) or token; x splits row-major into P equal blocks.
            beta <= 0 gives NaN in its block. step * beta is at least 2**-126.
        bits: 2 to 8 (unsigned: 1 to 8).
        signed: whether the grid has negative levels.
        grad_scale: factor on step's gradient; None is 1. The release's is 1 / sqrt(x.numel() * qmax).
        backend: "reference" | "cpu" | "cuda" | "triton", as ``lsq`` has them; None picks the fastest that can run.

    Returns:
        Tensor like x; contiguous, or channels_last where x is. A NaN stays where it was: its dx is 0, the gradients of
        its block's step and beta are NaN.

    Raises:
        TypeError: x, step or beta is not a float tensor, bits not an int.
        ValueError: bits out of range, step or beta not [P], P does not divide x.numel(), two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    blocks.int_range("asq", bits, signed)
    _, (step, beta), _ = blocks.prepare("asq", x, step=step, beta=beta)
    return lsq.lsq(x, reference.step_of(step, beta, grad_scale), bits=bits, signed=signed, backend=backend)
