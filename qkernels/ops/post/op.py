"""POST: weights on a grid of powers of sqrt(2) (ASQ + POST, arXiv:2504.17263, and its authors' release)."""

import torch
from torch import Tensor

from qkernels import backends
from qkernels.ops import blocks
from qkernels.ops.function import call, is_exporting, once_differentiable

from . import reference

GRIDS = ("exact", "release", "nozero")

_fwd = backends.define(
    "post_fwd(Tensor w, Tensor scale, int count, bool zero, str backend) -> Tensor",
    fake=lambda w, scale, count, zero, backend: torch.empty_like(w),
    package=__package__,
    reference=reference.post,
)
_bwd = backends.define(
    "post_bwd(Tensor g, Tensor w, Tensor scale, int count, bool zero, bool clip, str backend) -> (Tensor, Tensor)",
    fake=lambda g, w, scale, count, zero, clip, backend: (torch.empty_like(w), torch.empty_like(scale)),
    package=__package__,
)


class _POST(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(w, scale, count, zero, clip, grad_scale, backend):
        return _fwd(w.contiguous(), scale.contiguous(), count, zero, backend)

    @staticmethod
    def setup_context(ctx, inputs, output):
        w, scale, ctx.count, ctx.zero, ctx.clip, ctx.grad_scale, ctx.backend = inputs
        ctx.save_for_backward(w, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        w, scale = ctx.saved_tensors
        args = (g.contiguous(), w.contiguous(), scale.contiguous(), ctx.count, ctx.zero, ctx.clip, ctx.backend)
        dw, ds = _bwd(*args)
        return dw, ds if ctx.grad_scale is None else ds * ctx.grad_scale, None, None, None, None, None


def _grid(bits: int, grid: str) -> tuple[int, bool]:
    """(number of magnitudes, whether zero is a level)."""
    if grid not in GRIDS:
        raise ValueError(f"post: grid must be one of {', '.join(GRIDS)}, got {grid!r}")
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"post: bits must be an int, got {type(bits).__name__}")
    least = 1 if grid == "nozero" else 2
    if not least <= bits <= 8:
        raise ValueError(f"post: bits must be between {least} and 8 (grid {grid}), got {bits}")
    return 2 ** (bits - 1) - (1 if grid == "exact" else 0), grid != "nozero"


def post_levels(bits: int, grid: str = "exact") -> Tensor:
    """The levels of ``post`` for scale 1, ascending: float32 [K], each exact in bfloat16 and float16 (2**-14 and up).

    grid "exact":   0 and +-2**(-k/2), k = 0 .. 2**(b-1) - 2;  K = 2**b - 1 fits b bits
    grid "release": 0 and +-2**(-k/2), k = 0 .. 2**(b-1) - 1;  K = 2**b + 1, one level more than b bits hold (the
                    authors' released code)
    grid "nozero":  +-2**(-k/2), k = 0 .. 2**(b-1) - 1;        K = 2**b, no zero
    Odd k use bfloat16(sqrt(2)) = 1.4140625, 1.1e-4 (relative) below sqrt(2).

    Raises: TypeError, ValueError as ``post``.
    """
    return torch.tensor(reference.levels(*_grid(bits, grid)), dtype=torch.float32)


def post(
    w: Tensor,
    scale: Tensor,
    *,
    bits: int,
    grid: str = "exact",
    clip_grad: bool = True,
    grad_scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """``nearest(clamp(w / scale, -1, 1)) * scale``: the nearest (absolute distance) power of sqrt(2), or zero.

    Half way between two levels goes to the larger magnitude. Gradients, with u = w / scale and l its level
    (verified against the authors' release, whose autograd gives the same):
        dw     = g * [|u| <= 1]                 (clip_grad=False: g, as APoT's code does)
        dscale = sum over the block of  g * (l - u  where |u| <= 1, else sign(u))  * grad_scale

    Args:
        w: any shape, float32 | float16 | bfloat16; computed in float32 whatever the dtype.
        scale: [P], float, in units of w, positive: the largest level. scale <= 0 gives NaN there.
        bits: 2 to 8 (grid "nozero": 1 to 8).
        grid: "exact" | "release" | "nozero"; see ``post_levels``.
        clip_grad: whether clipped weights get no gradient.
        grad_scale: factor on scale's gradient; None is 1. The release's is 1 / sqrt(L).
        backend: "reference" | "cpu" | "cuda" | "triton"; None picks the fastest that can run. An exported graph chooses
            when it runs, and has no gradients here.

    Returns:
        Tensor like w. A NaN stays where it was: its dw is 0, its block's dscale NaN.

    Raises:
        TypeError: w or scale is not a float tensor, bits not an int.
        ValueError: bits or grid unknown, scale not [P], P does not divide w.numel(), two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    count, zero = _grid(bits, grid)
    w, (scale,), restore = blocks.prepare("post", w, scale=scale)
    if backend is None and is_exporting():  # a graph for inference, on whatever device it will run
        return restore(_fwd(w.contiguous(), scale.contiguous(), count, zero, "auto"))
    backend = backends.resolve("post", w, backend)
    if backend == "reference":
        return restore(reference.post(w, scale, count, zero, clip_grad, grad_scale))
    return restore(call(_POST, _POST.forward, w, scale, count, zero, clip_grad, grad_scale, backend))


def harden(w: Tensor, scale: Tensor, *, bits: int, grid: str = "exact") -> reference.Hardened:
    """The codes, levels and scale of ``post(w, scale)``; see ``qkernels.harden``."""
    count, zero = _grid(bits, grid)
    if 2 * count + zero > 256:
        raise ValueError(f"harden: a code must fit 8 bits, got {2 * count + zero} levels (post, {bits} bits, {grid})")
    _, (scale,), _ = blocks.prepare("post", w, scale=scale)
    return reference.harden(w, scale, count, zero)
