"""The work of one fold, from plain data to plain data: what a worker process is given, and what it gives back."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.files import FILE
from qkernels.methods import Method

from . import train
from .claims import observe, residuals
from .data import digits, split
from .models import MODELS
from .rows import file_bytes, histogram, relative_weights
from .settings import Settings


@dataclass(frozen=True)
class FloatFold:
    """A float model before and after the fine-tuning; classes: of the fold's test images."""

    losses: list[float]
    tuning_losses: list[float]
    start: dict[str, Tensor]
    tuned: dict[str, Tensor]
    start_classes: Tensor
    tuned_classes: Tensor


@dataclass(frozen=True)
class QuantizedFold:
    """What one fold adds to a row. margins: of the test images, how far the best logit is from the second."""

    losses: list[float]
    nearest: Tensor
    classes: Tensor
    margins: Tensor
    bytes: dict[str, int]
    weights: int
    histogram: dict[str, Any]
    claims: dict[str, Any]


def train_float(settings: Settings, name: str, k: int) -> FloatFold:
    """Fold k of a float model: trained, then fine-tuned as the quantized models are."""
    x, y, (fit, test) = _data(settings, k)
    seed = settings.seed + k
    torch.manual_seed(seed)
    model = MODELS[name]()
    losses = train.fit(model, x[fit], y[fit], epochs=settings.epochs, lr=settings.lr, seed=seed)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    start_classes = train.logits(model, x[test]).argmax(1)
    tuning_losses = _tune(settings, model, k)
    return FloatFold(
        losses, tuning_losses, start, model.state_dict(), start_classes, train.logits(model, x[test]).argmax(1)
    )


def train_quantized(
    settings: Settings, name: str, config: Method, k: int, trained: FloatFold, folder: Path
) -> QuantizedFold:
    """Fold k of a row: the tuned float model rounded to nearest; the start model trained, converted and saved."""
    x, y, (fit, test) = _data(settings, k)
    torch.manual_seed(_tuning_seed(settings, k))
    first = x[fit][train.orders(len(fit), 1, _tuning_seed(settings, k))[0][: train.BATCH]]  # training's first batch
    nearest = train.quantized(_model(name, trained.tuned), config, first)
    nearest_classes = train.logits(nearest, x[test]).argmax(1)

    model = train.quantized(_model(name, trained.start), config, first)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (qk.nn.QuantLinear, qk.nn.QuantConv2d))}
    largest = max(layers, key=lambda name: layers[name].weight.numel())
    before, residuals_before = relative_weights(layers[largest]), residuals(layers[largest])
    levels = [_levels(layers[largest])]
    losses = _tune(settings, model, k, lambda: levels.append(_levels(layers[largest])))
    best = train.logits(model, x[test]).topk(2)
    after = relative_weights(layers[largest])
    weights = sum(layer.weight.numel() for layer in layers.values())
    claims = observe(model, layers, x[test]) | {
        "levels": levels if levels[0] != levels[-1] else [],
        "residuals": {"before": residuals_before, "after": residuals(layers[largest])},
    }

    qk.convert_(model)
    qk.save_packed(model, folder)
    return QuantizedFold(
        losses,
        nearest_classes,
        best.indices[:, 0],
        best.values[:, 0] - best.values[:, 1],
        file_bytes(folder / FILE, list(layers)),
        weights,
        histogram(largest, before, after),
        claims,
    )


def _levels(layer: nn.Module) -> list[float]:
    """The levels of a layer's grid, over the scale of their block."""
    return layer.weight_quantizer.harden(layer.weight).levels.sort().values.tolist()


@cache
def _parts(folds: int, seed: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    x, y = digits()
    return x, y, split(x, y, folds, seed)


def _data(settings: Settings, k: int) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(images, labels, (indices to train on, to test on) of fold k)."""
    x, y, parts = _parts(settings.folds, settings.seed)
    return x, y, parts[k]


def _tune(settings: Settings, model: nn.Module, k: int, after_epoch: Callable[[], None] = lambda: None) -> list[float]:
    """The fine-tuning that float and quantized models both get."""
    x, y, (fit, _) = _data(settings, k)
    epochs, lr, seed = settings.tuning_epochs, settings.tuning_lr, _tuning_seed(settings, k)
    return train.fit(model, x[fit], y[fit], epochs=epochs, lr=lr, seed=seed, after_epoch=after_epoch)


def _tuning_seed(settings: Settings, k: int) -> int:
    return settings.seed + settings.folds + k


def _model(name: str, state: dict[str, Tensor]) -> nn.Module:
    model = MODELS[name]()
    model.load_state_dict(state)
    return model
