"""One line of the demo's table: all that is known of a model whose weights are quantized in one way."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from qkernels.methods import Method, describe

if TYPE_CHECKING:
    from .folds import QuantizedFold

KINDS = ("float", "nearest", "qat", "packed")
PARTS = ("codes", "levels", "scale")
_BINS = 120


@dataclass
class Row:
    """A model, a method and its config; ``predictions`` and ``folds`` fill up fold by fold.

    predictions: kind -> int64 [n] classes, -1 where not tested yet. margins: float [n], how far QAT's best logit is
    from the second.
    """

    model: str
    method: str
    config: Method
    labels: Tensor
    step_ms: float
    float_step_ms: float
    step_ratio: float
    predictions: dict[str, Tensor] = field(init=False)
    margins: Tensor = field(init=False)
    folds: dict[int, "QuantizedFold"] = field(default_factory=dict)
    float_bytes: int = 0

    def __post_init__(self) -> None:
        self.predictions = {kind: torch.full_like(self.labels, -1) for kind in KINDS}
        self.margins = torch.full(self.labels.shape, torch.nan)

    def add(self, k: int, test: Tensor, fold: "QuantizedFold") -> None:
        """What is known of fold k, whose test images are ``test``."""
        self.folds[k] = fold
        self.predictions["nearest"][test] = fold.nearest
        self.predictions["qat"][test] = fold.classes
        self.margins[test] = fold.margins

    @property
    def name(self) -> str:
        method = "".join(c if c.isalnum() else "-" for c in self.method.lower())
        return f"{self.model}-{method}-{self.config.bits}bit"

    @property
    def weights(self) -> int:
        """How many are quantized."""
        return self.folds[0].weights

    def widths(self) -> dict[str, list[int]]:
        """layer -> the bits that it learned to need, fold by fold; empty for methods of a fixed width."""
        folds = [fold.claims["widths"] for fold in self.in_order()]
        return {layer: [widths[layer] for widths in folds] for layer in folds[0]}

    def in_order(self) -> list["QuantizedFold"]:
        return [self.folds[k] for k in sorted(self.folds)]

    def accuracy(self, kind: str) -> float | None:
        """Percent right of the images tested so far; None before the first."""
        return accuracy(self.predictions[kind], self.labels)

    def won_and_lost(self) -> tuple[int, int]:
        """How many images training put right, and wrong, against rounding to nearest."""
        before, after = (self.predictions[kind] == self.labels for kind in ("nearest", "qat"))
        return int((after & ~before).sum()), int((before & ~after).sum())

    def mean_bytes(self, part: str = "file") -> float | None:
        return sum(fold.bytes[part] for fold in self.folds.values()) / len(self.folds) if self.folds else None

    def bits_per_weight(self) -> float | None:
        """Of codes, levels and scales as they lie in the file."""
        if not self.folds:
            return None
        return 8 * sum(self.mean_bytes(part) for part in PARTS) / next(iter(self.folds.values())).weights

    def to_json(self) -> dict[str, Any]:
        won, lost = self.won_and_lost()
        return {
            "model": self.model,
            "method": self.method,
            "bits": self.config.bits,
            "config": describe(self.config),
            "accuracy": {kind: self.accuracy(kind) for kind in KINDS},
            "won": won,
            "lost": lost,
            "file_bytes": self.mean_bytes(),
            "float_file_bytes": self.float_bytes,
            "bytes": {part: self.mean_bytes(part) for part in self.folds[0].bytes},
            "bits_per_weight": self.bits_per_weight(),
            "weights": self.weights,
            "step_ms": self.step_ms,
            "float_step_ms": self.float_step_ms,
            "step_ratio": self.step_ratio,
            "losses": [fold.losses for fold in self.in_order()],
            "histogram": self.folds[0].histogram,
            "claims": self.folds[0].claims,
            "widths": self.widths(),
            "predictions": {kind: digits_text(p) for kind, p in self.predictions.items()},
        }


def accuracy(predictions: Tensor, labels: Tensor) -> float | None:
    """Percent right of the images tested so far (prediction >= 0); None before the first."""
    tested = predictions >= 0
    return 100 * (predictions == labels)[tested].double().mean().item() if tested.any() else None


def digits_text(classes: Tensor) -> str:
    """Classes 0 to 9 as a string of digits, in the order of the images."""
    return "".join(map(str, classes.tolist()))


@torch.no_grad()
def relative_weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """(weights over the scale of their block, the levels): what the quantizer rounds, and to what."""
    _, levels, scale = layer.weight_quantizer.harden(layer.weight)
    return (layer.weight.reshape(scale.numel(), -1) / scale[:, None]).flatten(), levels


def histogram(layer: str, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Counts over common bins that span the levels and 99.8 % of the weights; the outermost hold what lies beyond."""
    levels = after[1].sort().values
    quantiles = torch.tensor([0.001, 0.999])
    ends = torch.stack([*(weights.quantile(quantiles) for weights, _ in (before, after)), levels[[0, -1]]])  # [3, 2]
    low, high = ends[:, 0].min().item(), ends[:, 1].max().item()
    margin = 0.03 * (high - low)
    low, high = low - margin, high + margin
    counts = {
        when: torch.histc(weights.clamp(low, high), _BINS, low, high).int().tolist()
        for when, (weights, _) in (("before", before), ("after", after))
    }
    spans = {"levels": levels.tolist(), "levels_before": before[1].sort().values.tolist(), "low": low, "high": high}
    return {"layer": layer} | spans | counts


def file_bytes(path: Path, layers: list[str]) -> dict[str, int]:
    """Of a packed file: its size, and how much of it is the layers' codes, levels and scales, other tensors, header."""
    sizes = {"file": path.stat().st_size} | dict.fromkeys((*PARTS, "other"), 0)
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")  # safetensors: the header's length, the header, the data
        header = json.loads(f.read(length))
    for name, entry in header.items():
        if name != "__metadata__":
            layer, _, part = name.rpartition(".")
            start, stop = entry["data_offsets"]
            sizes[part if layer in layers and part in PARTS else "other"] += stop - start
    return sizes | {"header": 8 + length}
