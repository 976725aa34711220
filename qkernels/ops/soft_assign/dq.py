"""The three forms of a DQ-style weight: how a latent chooses among learned levels."""

from torch import Tensor

from . import reference
from .op import soft_assign

FORMS = ("distance", "logits", "basis")


def dq(
    latent: Tensor,
    levels: Tensor,
    temperature: Tensor,
    *,
    form: str = "distance",
    hard: bool = False,
    backend: str | None = None,
) -> Tensor:
    """A weight on learned levels q, in one of three forms; t is the temperature (an inverse one).

        "distance": latent x [*shape],      y = sum_k softmax_k(-t (x - q_k)**2) q_k; this is ``qkernels.soft_assign``
        "logits":   latent z [*shape, K],   y = sum_k softmax_k(t z_k) q_k
        "basis":    latent z [*shape, B],   y = sum_j tanh(t z_j) v_j, with levels v [B] the basis of 2**B levels

    hard=True gives what a growing t leads to, with the gradients of the soft form (straight through): the nearest
    level; the level of the largest logit (the first of equals); +v_j where z_j >= 0, else -v_j. Gradients, with pi or b
    the softmax or tanh:
        logits: dz_k = t g pi_k (q_k - y)    dlevel_k = sum g pi_k    dt = sum g sum_k z_k pi_k (q_k - y)
        basis:  dz_j = t g v_j (1 - b_j**2)  dlevel_j = sum g b_j     dt = sum g sum_j z_j v_j (1 - b_j**2)

    DQ-style, after arXiv:2012.13762: of that paper the abstract alone was at hand, which form it has is not verified.
    "logits" with fixed levels is SLB's (verified in MindSpore golden-stick), "basis" with codes of +-1 is LQ-Nets'
    (verified in its authors' code, which finds the basis in closed form). The gradients are derived, and checked
    against float64.

    Args:
        latent: as above, float32 | float16 | bfloat16, finite; computed in float32 whatever the dtype.
        levels: [K] (basis: [B], B of 1 to 8), or a row for each of P equal blocks of the result; float. "distance": see
            ``soft_assign``; the others take any order.
        temperature: [1] or [P], float, positive; t <= 0 gives NaN in its block.
        form: "distance" | "logits" | "basis".
        hard: whether y is on the grid.
        backend: as ``soft_assign`` for "distance"; the others have "reference" alone, which keeps numbers of the
            latent's size for the backward.

    Returns:
        Tensor of [*shape] in latent's dtype.

    Raises:
        TypeError: a tensor is not a float tensor, hard not a bool.
        ValueError: form unknown; shapes that do not fit; two devices.
        NotImplementedError: the requested backend cannot run this call.
    """
    if form not in FORMS:
        raise ValueError(f"dq: form must be one of {', '.join(FORMS)}, got {form!r}")
    if form == "distance":
        return soft_assign(latent, levels, temperature, hard=hard, backend=backend)
    if not isinstance(hard, bool):
        raise TypeError(f"dq: hard must be a bool, got {type(hard).__name__}")
    for key, t in (("latent", latent), ("levels", levels), ("temperature", temperature)):
        if not isinstance(t, Tensor):
            raise TypeError(f"dq: {key} must be a Tensor, got {type(t).__name__}")
        if not t.is_floating_point():
            raise TypeError(f"dq: {key} must be a float tensor, got {t.dtype}")
        if t.device != latent.device:
            raise ValueError(f"dq: latent and {key} must be on one device, got {latent.device} and {t.device}")
    least, most = (2, 256) if form == "logits" else (1, 8)
    if levels.dim() not in (1, 2) or not least <= levels.shape[-1] <= most:
        what = f"[K] or [P, K], K of {least} to {most} (form {form})"
        raise ValueError(f"dq: levels must have shape {what}, got {list(levels.shape)}")
    K = levels.shape[-1]
    if latent.dim() < 1 or latent.shape[-1] != K:
        raise ValueError(f"dq: the last dimension of latent must be K={K} (form {form}), got {list(latent.shape)}")
    if temperature.dim() != 1:
        raise ValueError(f"dq: temperature must have shape [1] or [P], got {list(temperature.shape)}")
    rows = levels if levels.dim() == 2 else levels[None]
    P = max(rows.shape[0], temperature.shape[0])
    if rows.shape[0] not in (1, P) or temperature.shape[0] not in (1, P) or P == 0 or latent.numel() // K % P:
        raise ValueError(
            f"dq: levels and temperature must have 1 or P blocks, P a divisor of {latent.numel() // K} results, "
            f"got {rows.shape[0]} and {temperature.shape[0]}"
        )
    if backend not in (None, "reference"):
        raise NotImplementedError(f"dq: form {form} has the backend reference alone, got {backend!r}")
    fn = reference.logits if form == "logits" else reference.basis
    return fn(latent, rows.float().expand(P, -1), temperature.float().expand(P), hard)
