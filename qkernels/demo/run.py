"""The demo itself: train float, fine-tune quantized, convert, save, load in a new process, compare; then the report."""

import contextlib
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

import qkernels as qk
from qkernels.__main__ import environment
from qkernels.methods import describe

from . import train
from .data import digits, split
from .folds import FloatFold, train_float, train_quantized
from .models import ACTIVATION, MODELS, activation
from .progress import Watch
from .rows import Row, accuracy, digits_text
from .settings import Settings
from .workers import Workers

_ROUNDS = 30  # steps of each model that are timed side by side


class DemoError(RuntimeError):
    """What the demo promises does not hold; the message says where."""


def run(settings: Settings, out: Path, watch: Watch, *, command: str) -> dict[str, Any]:
    """Everything; writes ``out/report.html``, ``out/results.json`` and ``out/packed/``. Returns the results.

    Raises:
        DemoError: a method that cannot quantize a model, a packed file that the new process cannot load, or that
            predicts otherwise than the trained model.
        OSError: ``out`` cannot be written.
    """
    from .report import render, summary  # with matplotlib, which takes a second: not before it is needed

    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    x, y = digits()
    folds = split(x, y, settings.folds, settings.seed)
    with Workers(settings.workers) as workers, one_thread(), torch.random.fork_rng(devices=[]):
        demo = Demo(settings, x, y, folds, out / "packed", watch, workers)
        torch.manual_seed(settings.seed)
        rows = demo.timed_rows()
        watch.start(rows, demo.work(rows))
        floats = demo.train_floats(rows)
        demo.train_rows(rows, floats)
    demo.run_packed(rows)
    own = dict.fromkeys(name for name, c in settings.configs() if activation(c) is not ACTIVATION)
    activations = [describe(ACTIVATION), *(f"{name}: its own" for name in own)]
    results = {
        "command": command,
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "seconds": time.perf_counter() - began,
        "environment": environment(),
        "settings": asdict(settings),
        "batch": train.BATCH,
        "activation": "; ".join(activations),
        "images": len(y),
        "labels": digits_text(y),
        "models": demo.describe_floats(rows, floats),
        "rows": [row.to_json() for row in rows],
    }
    (out / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False))
    (out / "report.html").write_text(render(results), encoding="utf-8")
    watch.finish(rows, summary(results), out / "report.html")
    return results


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """These nets are too small to share a step among cores: two threads are slower, much so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Demo:
    """What all steps share. folds: (indices to train on, to test on) each; packed: the folder for packed files."""

    settings: Settings
    x: Tensor
    y: Tensor
    folds: list[tuple[Tensor, Tensor]]
    packed: Path
    watch: Watch
    workers: Workers

    def timed_rows(self) -> list[Row]:
        """The table's rows with their step times: float and quantized side by side, untrained."""
        rows = []
        x, y = self.x[: train.BATCH], self.y[: train.BATCH]
        for name in self.settings.models:
            self.watch.say(f"timing a training step of {name}, float and quantized side by side ...")
            configs, models = self.settings.configs(), [MODELS[name]()]
            for _, config in configs:
                try:
                    models.append(train.quantized(models[0], config, x))
                except ValueError as error:
                    raise DemoError(f"{describe(config)} cannot quantize {name}: {error}") from error
            ms, ratios = train.step_ms(models, x, y, _ROUNDS)
            rows += [Row(name, m, c, self.y, ms[i], ms[0], ratios[i]) for i, (m, c) in enumerate(configs, start=1)]
        return rows

    def work(self, rows: list[Row]) -> float:
        """The expected milliseconds of a step, summed over all epochs to come: what progress counts."""
        return self.settings.folds * (sum(map(self._float_work, self._first_rows(rows))) + sum(map(self._work, rows)))

    def train_floats(self, rows: list[Row]) -> dict[str, list[FloatFold]]:
        """model -> its folds: trained float, and fine-tuned float, which is what the rows compare with."""
        first = {row.model: row for row in self._first_rows(rows)}
        tasks = [((m, k), (train_float, self.settings, m, k)) for m in first for k in range(self.settings.folds)]
        found: dict[tuple[str, int], FloatFold] = {}
        for (model, k), done in self.workers.run(tasks):
            found[model, k] = done
            for row in rows:
                if row.model == model:
                    row.predictions["float"][self.folds[k][1]] = done.tuned_classes
                    row.float_bytes = len(safetensors.torch.save(done.tuned))
            self.watch.doing(f"{model}  float", k, self.settings.folds)
            self.watch.advance(self._float_work(first[model]))
            if sum(m == model for m, _ in found) == self.settings.folds:
                self.watch.finished_float(first[model])
        return {model: [found[model, k] for k in range(self.settings.folds)] for model in first}

    def train_rows(self, rows: list[Row], floats: dict[str, list[FloatFold]]) -> None:
        """Every fold of every row, each added to its row as it is done."""
        tasks = [
            (
                (row, k),
                (train_quantized, self.settings, row.model, row.config, k, floats[row.model][k], self.folder(row, k)),
            )
            for row in rows
            for k in range(self.settings.folds)
        ]
        for (row, k), done in self.workers.run(tasks):
            row.add(k, self.folds[k][1], done)
            self.watch.doing(f"{row.model}  {row.method} {row.config.bits} bits", k, self.settings.folds, row)
            self.watch.advance(self._work(row))
            if len(row.folds) == self.settings.folds:
                self.watch.finished(row)

    def describe_floats(self, rows: list[Row], floats: dict[str, list[FloatFold]]) -> dict[str, dict[str, Any]]:
        """model -> what the float models have to tell."""
        told = {}
        for row in self._first_rows(rows):
            folds = floats[row.model]
            classes = torch.full_like(self.y, -1)
            for (_, test), fold in zip(self.folds, folds, strict=True):
                classes[test] = fold.start_classes
            layers = qk.plan(MODELS[row.model](), [("*", row.config)]).layers
            told[row.model] = {
                "losses": [fold.losses for fold in folds],
                "tuning_losses": [fold.tuning_losses for fold in folds],
                "start_accuracy": accuracy(classes, self.y),
                "layers": [f"{layer.kind} {list(layer.shape)}" for layer in layers],
            }
        return told

    def _float_work(self, row: Row) -> float:
        return (self.settings.epochs + self.settings.tuning_epochs) * row.float_step_ms

    def _work(self, row: Row) -> float:
        return self.settings.tuning_epochs * row.step_ms

    def _first_rows(self, rows: list[Row]) -> list[Row]:
        """One row of each model."""
        return list({row.model: row for row in reversed(rows)}.values())[::-1]

    def folder(self, row: Row, k: int) -> Path:
        return self.packed / row.name / f"fold-{k + 1}"

    def run_packed(self, rows: list[Row]) -> None:
        """Predict with the packed files in a new process, and compare with the trained models image by image.

        Raises:
            DemoError: the process fails, or one prediction differs.
        """
        files = [(row, k, str(self.folder(row, k))) for row in rows for k in range(self.settings.folds)]
        self.watch.say(f"loading {len(files)} packed files in a new process ...")
        listing = [{"model": row.model, "fold": k, "folder": folder} for row, k, folder in files]
        task = json.dumps({"folds": self.settings.folds, "seed": self.settings.seed, "files": listing})
        new = [sys.executable, "-m", "qkernels.demo.load"]
        done = subprocess.run(new, input=task, capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
            raise DemoError(f"the new process could not run the packed files: {said[-1]}")
        for (row, k, folder), classes in zip(files, json.loads(done.stdout), strict=True):
            test = self.folds[k][1]
            row.predictions["packed"][test] = torch.tensor(classes)
            packed, trained = row.predictions["packed"], row.predictions["qat"]
            if differ := [i for i in test.tolist() if packed[i] != trained[i]]:
                i = differ[0]
                raise DemoError(
                    f"{folder}: the packed model must predict what the trained one does, got {len(differ)} of "
                    f"{len(test)} images that differ; image {i} is {packed[i]} packed and {trained[i]} trained, "
                    f"where the best two logits are {row.margins[i]:.3g} apart"
                )
