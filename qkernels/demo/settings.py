"""What the demo's numbers depend on, besides the machine."""

import os
from dataclasses import dataclass, field

from qkernels.methods import Method, presets

from .models import MODELS, config


@dataclass(frozen=True)
class Settings:
    """Checked when made.

    Raises:
        ValueError: an unknown method or model, a width that a method does not have, no widths, fewer than 2 folds, no
            worker.
    """

    methods: tuple[str, ...] = field(default_factory=lambda: tuple(presets()))
    bits: tuple[int, ...] = (4, 3, 2)
    models: tuple[str, ...] = tuple(MODELS)
    folds: int = 5
    epochs: int = 20
    tuning_epochs: int = 15
    lr: float = 1e-2
    tuning_lr: float = 5e-3
    seed: int = 0
    workers: int = min(4, os.cpu_count() or 1)

    def __post_init__(self) -> None:
        for name, known in (("methods", presets()), ("models", MODELS)):
            if not (given := getattr(self, name)) or not set(given) <= set(known):
                raise ValueError(f"{name} must be among {', '.join(known)}, got {', '.join(given) or 'none'}")
        if not self.bits:
            raise ValueError("bits must have at least one width, got none")
        if self.folds < 2:
            raise ValueError(f"folds must be at least 2, got {self.folds}")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        self.configs()

    def configs(self) -> list[tuple[str, Method]]:
        """(method, its config at this width) of each row."""
        return [(method, config(method, bits)) for method in self.methods for bits in self.bits]
