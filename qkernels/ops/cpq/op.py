"""CPQ fake quantization: cluster-promoting quantization (Lee et al. 2021, arXiv:2109.02100), with DropBits."""

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops import blocks
from qkernels.ops.dropbits import op as dropbits
from qkernels.ops.function import call, is_exporting, once_differentiable

from . import reference

_fwd = backends.define(
    "cpq_fwd(Tensor x, Tensor step, Tensor sigma, int qmin, int qmax, str backend) -> Tensor",
    fake=lambda x, step, sigma, qmin, qmax, backend: torch.empty_like(x),
    package=__package__,
    reference=reference.cpq,
)
_bwd = backends.define(
    "cpq_bwd(Tensor g, Tensor x, Tensor step, Tensor sigma, int qmin, int qmax, bool full, bool truncate, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    fake=lambda g, x, step, sigma, *rest: (torch.empty_like(x), torch.empty_like(step), torch.empty_like(sigma)),
    package=__package__,
)


class _CPQ(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, step, sigma, qmin, qmax, full, truncate, backend):
        return _fwd(x.contiguous(), step.contiguous(), sigma.contiguous(), qmin, qmax, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, step, sigma, *ctx.options = inputs
        ctx.save_for_backward(x, step, sigma)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        grads = _bwd(g.contiguous(), *(t.contiguous() for t in ctx.saved_tensors), *ctx.options)
        return *grads, None, None, None, None, None


def cpq(
    x: Tensor,
    step: Tensor,
    sigma: Tensor,
    keep: Tensor | None = None,
    *,
    bits: int,
    signed: bool = True,
    symmetric: bool = False,
    estimator: str = "argmax",
    truncate: bool = False,
    backend: str | None = None,
) -> Tensor:
    """The most probable multiple of a learned step under logistic noise, with the gradient of the probabilities.

    Code n of ``qmin .. qmax`` has, for x with logistic noise of scale sigma, the probability

        pi_n = S((step (n + 1/2) - x) / sigma) - S((step (n - 1/2) - x) / sigma),   S the sigmoid

    so the most probable is the nearest: forward is ``step * clamp(round(x / step), qmin, qmax)``, half to even, the
    function of ``lsq``, whatever sigma is. qmin, qmax: signed ``-2**(bits-1), 2**(bits-1) - 1``, symmetric
    ``-(2**(bits-1) - 1), 2**(bits-1) - 1``, unsigned ``0, 2**bits - 1``. Backward, with k the code of x:

        estimator="argmax"   the gradient of  step * (k + k (pi_k - [pi_k]))                  [.]: a constant
        estimator="full"     the gradient of  step * (k + sum_n n pi_n - [sum_n n pi_n])
        truncate             pi divided by the mass of the grid, sum_n pi_n

    each as a closed form: no tensor has a dimension for the codes, and the cost does not grow with their number. With
    "argmax" a weight of code 0 gets no gradient; far off the grid (85 sigma) no weight does. The kernels take
    step / sigma as 1e-18 or more ("full" with truncate: 1e-4), and as 1e6 or less.

    keep: DropBits. Gates of levels, groups of codes +-n, on the symmetric grid; 0 is always kept. ``[bits - 1]``,
    bitwise sharing: gate j is of ``2**j <= |n| < 2**(j + 1)``. ``[2**(bits-1) - 1]``, endpoints sharing: gate j is of
    ``|n| = j + 1``. (At 2 bits the two are one.) The code is the one with the largest ``keep * pi``, and the
    probability that gets the gradient is ``keep_k pi_k / sum_n keep_n pi_n``. A gate of exactly 0 drops its level, and
    gets no gradient. Two codes whose ``keep * pi`` agree to rounding may be chosen either way by another backend.

    Args:
        x: any shape, float32 | float16 | bfloat16; computed in float32 whatever the dtype.
        step: [P], float, in units of x, positive; x splits row-major into P equal blocks. Not positive: NaN there.
        sigma: [P] or [1], float, in units of x, positive: the scale of the noise. The paper starts near step / 3.
        keep: None, or float [bits - 1] or [2**(bits-1) - 1] in [0, 1], shared by all of x; see ``hard_concrete``.
            Values are not checked, which would wait for a GPU: one that is not finite gives NaN for all of x, a
            negative one is as 0, one above 1 is a weight like any other.
        bits: 2 to 8 (unsigned: 1 to 8).
        signed: whether the grid has negative levels.
        symmetric: leaves out the most negative code; keep implies it.
        estimator: "argmax" | "full"; with keep "argmax".
        truncate: whether the probabilities are those given that x is on the grid; keep implies it.
        backend: "reference" | "cpu" | "cuda" | "triton"; None picks the fastest that can run. An exported graph chooses
            when it runs, and has no gradients here.

    Returns:
        Tensor like x; contiguous, or channels_last where x is. A NaN stays where it was: its dx is 0, its block's dstep
        and dsigma NaN, and dkeep.

    Raises:
        TypeError: x, step, sigma or keep is not a float tensor, bits not an int, a flag not a bool.
        ValueError: bits out of range, step or sigma not [P], P does not divide x.numel(), two devices, an unknown
            estimator, symmetric or keep with signed=False, keep of another length or with estimator="full".
        NotImplementedError: the requested backend cannot run this call.

    Source: Lee et al. 2021 (arXiv:2109.02100), whose text was not at hand. Verified against Louizos et al. 2019
    (arXiv:1810.01875), on which it builds: the grid, the probabilities, truncate, rounding at test time. Inferred: that
    only the chosen code's probability has a gradient ("full" is the other reading), the two ways to share gates and how
    they enter the probabilities. The closed forms are tested against autograd through every probability, in float64.
    """
    qmin, qmax = _grid_with(keep, bits, signed, symmetric)
    check_estimator("cpq", estimator, truncate)
    full = estimator == "full"
    if keep is not None and full:
        raise ValueError("cpq: keep must go with estimator='argmax', got 'full'")
    x, (step, sigma), restore = blocks.prepare("cpq", x, step=step, sigma=sigma)
    if keep is not None:
        return restore(dropbits.dropbits(x, step, sigma, keep, bits, backend))
    if backend is None and is_exporting():  # a graph for inference, on whatever device it will run
        return restore(_fwd(x.contiguous(), step.contiguous(), sigma.contiguous(), qmin, qmax, "auto"))
    backend = backends.resolve("cpq", x, backend)
    if backend == "reference":
        return restore(reference.cpq(x, step, sigma, qmin, qmax, full, truncate))
    return restore(call(_CPQ, _CPQ.forward, x, step, sigma, qmin, qmax, full, truncate, backend))


def harden(
    x: Tensor,
    step: Tensor,
    sigma: Tensor,
    keep: Tensor | None = None,
    *,
    bits: int,
    signed: bool = True,
    symmetric: bool = False,
) -> reference.Hardened:
    """The codes, levels and scale of ``cpq(x, step, sigma, keep)``; see ``qkernels.harden``."""
    qmin, qmax = _grid_with(keep, bits, signed, symmetric)
    _, (step, sigma), _ = blocks.prepare("cpq", x, step=step, sigma=sigma)
    if keep is not None:
        return dropbits.harden(x, step, sigma, keep, bits)
    return reference.harden(x, step, sigma, qmin, qmax)


def _grid_with(keep: Tensor | None, bits: int, signed: bool, symmetric: bool) -> tuple[int, int]:
    """``grid``; keep implies the symmetric one."""
    if not isinstance(symmetric, bool):
        raise TypeError(f"cpq: symmetric must be a bool, got {type(symmetric).__name__}")
    if keep is not None and not signed:
        raise ValueError("cpq: keep must go with signed=True, got signed=False")
    return grid("cpq", bits, signed, symmetric or keep is not None)


def grid(name: str, bits: int, signed: bool, symmetric: bool) -> tuple[int, int]:
    """(smallest, largest) code; symmetric leaves out the most negative."""
    qmin, qmax = blocks.int_range(name, bits, signed)
    if symmetric and not signed:
        raise ValueError(f"{name}: symmetric=True must go with signed=True, got signed=False")
    return (-qmax, qmax) if symmetric else (qmin, qmax)


def check_estimator(name: str, estimator: str, truncate: bool) -> None:
    if estimator not in ("argmax", "full"):
        raise ValueError(f"{name}: estimator must be argmax or full, got {estimator!r}")
    if not isinstance(truncate, bool):
        raise TypeError(f"{name}: truncate must be a bool, got {type(truncate).__name__}")
