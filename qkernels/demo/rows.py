"""One line of the demo's table: all that is known of a model whose weights are quantized in one way."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.methods import Method, describe

KINDS = ("float", "nearest", "qat", "packed")
PARTS = ("codes", "levels", "scale")
_BINS = 120


@dataclass
class Row:
    """A model and the config of its weights; ``predictions``, ``losses`` and ``bytes`` fill up fold by fold.

    predictions: kind -> int64 [n] classes, -1 where not tested yet. losses: of QAT, per fold and epoch. bytes: per
    fold, see ``file_bytes``. margins: float [n], how far QAT's best logit is from the second. weights: how many are
    quantized.
    """

    model: str
    config: Method
    labels: Tensor
    step_ms: float
    float_step_ms: float
    step_ratio: float
    predictions: dict[str, Tensor] = field(init=False)
    margins: Tensor = field(init=False)
    losses: list[list[float]] = field(default_factory=list)
    bytes: list[dict[str, int]] = field(default_factory=list)
    float_bytes: int = 0
    weights: int = 0
    histogram: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.predictions = {kind: torch.full_like(self.labels, -1) for kind in KINDS}
        self.margins = torch.full(self.labels.shape, torch.nan)

    @property
    def method(self) -> str:
        return type(self.config).__name__

    @property
    def name(self) -> str:
        return f"{self.model}-{self.method.lower()}-{self.config.bits}bit"

    def accuracy(self, kind: str) -> float | None:
        """Percent right of the images tested so far; None before the first."""
        return accuracy(self.predictions[kind], self.labels)

    def won_and_lost(self) -> tuple[int, int]:
        """How many images training put right, and wrong, against rounding to nearest."""
        before, after = (self.predictions[kind] == self.labels for kind in ("nearest", "qat"))
        return int((after & ~before).sum()), int((before & ~after).sum())

    def mean_bytes(self, part: str = "file") -> float | None:
        return sum(sizes[part] for sizes in self.bytes) / len(self.bytes) if self.bytes else None

    def bits_per_weight(self) -> float | None:
        """Of codes, levels and scales as they lie in the file."""
        return 8 * sum(self.mean_bytes(part) for part in PARTS) / self.weights if self.bytes else None

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
            "bytes": {part: self.mean_bytes(part) for part in self.bytes[0]},
            "bits_per_weight": self.bits_per_weight(),
            "weights": self.weights,
            "step_ms": self.step_ms,
            "float_step_ms": self.float_step_ms,
            "step_ratio": self.step_ratio,
            "losses": self.losses,
            "histogram": self.histogram,
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
    return {"layer": layer, "levels": levels.tolist(), "low": low, "high": high} | counts


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
