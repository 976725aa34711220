"""DQ-style quantization as a module's method: its options, where levels and steps start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qkernels.ops import blocks, calibration
from qkernels.ops.grids import Hardened
from qkernels.ops.ste import scale_grad

from . import op

STARTS = ("lloyd", "quantile")
BALANCES = ("normalized", "sqrt", "log", "plain")


@dataclass(frozen=True, kw_only=True)
class DQ:
    """DQ-style quantization (after arXiv:2012.13762, of which the abstract alone was at hand): learned levels.

    Weights: 2**bits levels anywhere, one codebook a layer, learned by gradient descent through ``qkernels.soft_assign``
    (module: ``qkernels.nn.CodebookQuantizer``). Activations: a uniform grid whose step balances the errors of the
    channels instead of following the few of high variance (``qkernels.nn.BalancedQuantizer``). Verified from the
    abstract: levels are learned, and the errors of individual channels are taken into account. Inferred: everything
    else here; no number of the paper is claimed.

    Args:
        bits: 1 to 8 (activations with negative values: 2 to 8).
        granularity: "tensor" | "row" | group size g along K, K % g == 0: the blocks of the weight that the codebook is
            scaled to, by the root mean square of each at the start (constants; "tensor": 1). Activations: "tensor".
        levels_init: where the levels start: "lloyd" (least squared error, Lloyd's iteration) | "quantile".
        sharpness: t * spacing**2 at the start, positive: how far the gradients are from those of rounding. Neighboring
            levels, one mean spacing away, weigh e**-sharpness of the nearest; see ``CodebookQuantizer.sharpen``.
        soft: whether the forward is soft too. Such a layer has no codes, and cannot be converted before ``soft`` ends.
        grad_scale: whether the levels' gradient is multiplied by 1 / sqrt(elements / 2**bits).
        balance: of activations, what is least: the sum over channels of phi(E / A), E the squared error and A the
            energy of a channel; phi(e) = e ("normalized") | sqrt(e) | log(e); "plain": the sum of E.
        signed: of activations, whether the grid has negative levels; None: if the calibration batch has any.

    Raises:
        TypeError, ValueError: an option is not as above.
    """

    bits: int
    granularity: str | int = "tensor"
    levels_init: str = "lloyd"
    sharpness: float = 4.0
    soft: bool = False
    grad_scale: bool = True
    balance: str = "normalized"
    signed: bool | None = None

    parameters: ClassVar[tuple[str, ...]] = ("levels",)
    positive: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        blocks.int_range("DQ", self.bits, False)
        calibration.check_granularity("DQ", self.granularity)
        for key, known in (("levels_init", STARTS), ("balance", BALANCES)):
            if getattr(self, key) not in known:
                raise ValueError(f"DQ: {key} must be one of {', '.join(known)}, got {getattr(self, key)!r}")
        if isinstance(self.sharpness, bool) or not isinstance(self.sharpness, (int, float)):
            raise TypeError(f"DQ: sharpness must be a float, got {type(self.sharpness).__name__}")
        if not 0 < self.sharpness < float("inf"):
            raise ValueError(f"DQ: sharpness must be positive and finite, got {self.sharpness}")
        calibration.check_flag("DQ", "soft", self.soft)
        calibration.check_flag("DQ", "grad_scale", self.grad_scale)
        if self.signed is not None:
            calibration.check_flag("DQ", "signed", self.signed)

    @property
    def n_levels(self) -> int:
        return 2**self.bits

    def module(self, shape: Sequence[int] | None, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        from qkernels.nn import dq

        kind = dq.BalancedQuantizer if shape is None else dq.CodebookQuantizer
        return kind(self, shape, dtype=dtype, device=device)

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """{"levels": float32 [2**bits], ascending} for the whole of x; P is not used.

        Where x has fewer different values than levels, some levels are equal. A tensor of zeros starts as if its
        elements were spread evenly up to 1 / sqrt(K), K = numel / x.shape[0].
        """
        v = x.detach().float().flatten().sort().values
        K = self.n_levels
        if not v.any():
            return {"levels": torch.linspace(-1, 1, K, device=x.device) * (x.numel() / x.shape[0]) ** -0.5}
        middle = (torch.arange(K, device=x.device) * 2 + 1) * v.numel() // (2 * K)
        levels = v[middle]
        return {"levels": _lloyd(v, levels) if self.levels_init == "lloyd" else levels}

    def quantize(
        self,
        x: Tensor,
        levels: Tensor,
        *,
        samples: int = 1,
        sharpness: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """One call of ``soft_assign`` on x / scale; the order of the levels is free. sharpness: float32 [1]."""
        kappa = (max(x.numel(), 1) / self.n_levels) ** -0.5 if self.grad_scale else None
        q = scale_grad(levels.float(), kappa).sort().values
        if sharpness is None:
            sharpness = torch.full((1,), self.sharpness, device=x.device)
        temperature = inverse_temperature(q.detach(), sharpness)
        if scale is None:
            return op.soft_assign(x, q, temperature, hard=not self.soft)
        rows = x.float().reshape(scale.shape[0], -1)  # [P, L]
        y = op.soft_assign(rows / scale[:, None], q, temperature, hard=not self.soft) * scale[:, None]
        return (y + 0.0).to(x.dtype).reshape(x.shape)

    def harden(self, x: Tensor, levels: Tensor, scale: Tensor | None = None) -> Hardened:
        """The codes, levels and scale of ``quantize``, if that is hard.

        Raises:
            ValueError: soft=True.
        """
        if self.soft:
            raise ValueError(
                "DQ: only a hard forward has codes, got soft=True: set soft=False, and train on if you can"
            )
        q = levels.float().sort().values
        one = torch.ones(1, device=x.device)
        rows = x if scale is None else x.float().reshape(scale.shape[0], -1) / scale[:, None]
        codes = op.harden(rows, q, one, hard=True).codes.reshape(x.shape)
        return Hardened(codes, q, one if scale is None else scale)


def inverse_temperature(levels: Tensor, sharpness: Tensor) -> Tensor:
    """[1]: sharpness over the square of the mean spacing of the levels, float32 [K] ascending."""
    spacing = (levels[-1:] - levels[:1]) / (levels.shape[0] - 1)
    return sharpness / spacing.square().clamp_min(1e-30)  # equal levels: any finite temperature will do


def _lloyd(v: Tensor, levels: Tensor, steps: int = 30) -> Tensor:
    """Levels of less and less squared error on v, both ascending: each the mean of what is nearest to it."""
    for _ in range(steps):
        ends = torch.searchsorted(v, (levels[1:] + levels[:-1]) * 0.5, right=True).tolist()
        sizes = [b - a for a, b in zip([0, *ends], [*ends, v.numel()], strict=True)]
        means = torch.stack([part.double().mean() for part in v.split(sizes)]).float()  # NaN where nothing is nearest
        better = torch.where(means.isnan(), levels, means)
        if torch.equal(better, levels):
            break
        levels = better
    return levels


def _relative(sums: tuple[Tensor, Tensor, Tensor], step: Tensor) -> tuple[Tensor, Tensor]:
    """(E / A, E) of each channel, float64; E / A is NaN where A is 0."""
    A, T, U = (s.double() for s in sums)
    E = (A - 2 * step.double() * T + step.double().square() * U).clamp_min(0)
    return E / A, E


# phi(e) and phi'(e), e = E / A. The small number keeps the slope finite for a channel without error.
_SMALL = 1e-4
_PHI: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "normalized": (lambda e: e, torch.ones_like),
    "sqrt": (lambda e: (e + _SMALL).sqrt(), lambda e: 0.5 / (e + _SMALL).sqrt()),
    "log": (lambda e: (e + _SMALL).log(), lambda e: 1 / (e + _SMALL)),
}


def objective(sums: tuple[Tensor, Tensor, Tensor], step: Tensor, balance: str) -> Tensor:
    """float64 [1]: ``sum_c phi(E_c / A_c)`` over channels with A > 0, from ``channel_error(x, step)``; see ``DQ``."""
    relative, E = _relative(sums, step)
    value = E if balance == "plain" else _PHI[balance][0](relative)
    return torch.where(sums[0] > 0, value, 0.0).sum().reshape(1)


def balanced_step(sums: tuple[Tensor, Tensor, Tensor], step: Tensor, balance: str) -> Tensor:
    """float32 [1]: the step of least objective for fixed codes, each channel weighted by phi'(E / A) / A.

    ``sum w T / sum w U`` over channels with A > 0; the step itself where that is not positive or not a number.
    """
    A, T, U = (s.double() for s in sums)
    w = torch.ones_like(A) if balance == "plain" else _PHI[balance][1](_relative(sums, step)[0]) / A
    w = torch.where(A > 0, w, 0.0)
    best = ((w * T).sum() / (w * U).sum()).reshape(1)
    return torch.where((best > 0) & best.isfinite(), best, step.double()).float()
