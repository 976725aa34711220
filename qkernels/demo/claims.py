"""What each paper claims, as seen in one trained model: plain numbers for the report."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .rows import relative_weights

_BINS = 41


def residuals(layer: nn.Module) -> list[int]:
    """Counts of (weight - its level) / the distance to the next level on that side, in bins over [-1/2, 1/2].

    Weights beyond the outermost levels, which have no next level, are left out.
    """
    weights, levels = relative_weights(layer)
    levels = levels.sort().values.unique()
    inside = weights[(weights >= levels[0]) & (weights <= levels[-1])]
    upper = torch.searchsorted(levels, inside).clamp(1, len(levels) - 1)
    part = (inside - levels[upper - 1]) / (levels[upper] - levels[upper - 1])  # 0 at the level below, 1 at that above
    return torch.histc(torch.where(part > 0.5, part - 1, part), _BINS, -0.5, 0.5).int().tolist()


@torch.no_grad()
def observe(model: nn.Module, layers: Mapping[str, nn.Module], x: Tensor) -> dict[str, Any]:
    """Of a trained model, in eval mode: what its quantizers have learned beside their grids.

    Returns:
        "widths": layer -> the bits that it learned to need, of methods that learn them;
        "betas": layer -> the factor on its input's step for each sample of x, of methods that adapt it.
    """
    widths = {
        name: layer.weight_quantizer.effective_bits
        for name, layer in layers.items()
        if hasattr(layer.weight_quantizer, "effective_bits")
    }
    betas: dict[str, list[float]] = {}
    hooks = [
        layer.activation_quantizer.register_forward_pre_hook(
            lambda quantizer, inputs, name=name: betas.update({name: quantizer.beta(*inputs).tolist()})
        )
        for name, layer in layers.items()
        if hasattr(layer.activation_quantizer, "beta")
    ]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return {"widths": widths, "betas": {name: [round(b, 4) for b in values] for name, values in betas.items()}}
