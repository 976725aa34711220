"""The demo itself: train float, fine-tune quantized, convert, save, load in a new process, compare; then the report."""

import contextlib
import copy
import datetime
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels.__main__ import environment
from qkernels.files import FILE
from qkernels.methods import describe

from . import train
from .data import digits, split
from .models import ACTIVATION, MODELS, activation
from .progress import Watch
from .rows import Row, accuracy, digits_text, file_bytes, histogram, relative_weights
from .settings import Settings

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
    demo = Demo(settings, x, y, split(x, y, settings.folds, settings.seed), out / "packed", watch)
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        rows = demo.timed_rows()
        watch.start(rows, demo.work(rows))
        models = {m: demo.train_model(m, [row for row in rows if row.model == m]) for m in settings.models}
    demo.run_packed(rows)
    own = dict.fromkeys(type(c).__name__ for c in settings.configs() if activation(c) is not ACTIVATION)
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
        "models": models,
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

    def timed_rows(self) -> list[Row]:
        """The table's rows with their step times: float and quantized side by side, untrained."""
        rows = []
        x, y = self.x[: train.BATCH], self.y[: train.BATCH]
        for name in self.settings.models:
            self.watch.say(f"timing a training step of {name}, float and quantized side by side ...")
            configs, models = self.settings.configs(), [MODELS[name]()]
            for config in configs:
                try:
                    models.append(train.quantized(models[0], config, x))
                except ValueError as error:
                    raise DemoError(f"{describe(config)} cannot quantize {name}: {error}") from error
            ms, ratios = train.step_ms(models, x, y, _ROUNDS)
            rows += [Row(name, c, self.y, ms[i], ms[0], ratios[i]) for i, c in enumerate(configs, start=1)]
        return rows

    def work(self, rows: list[Row]) -> float:
        """The expected milliseconds of a step, summed over all epochs to come: what progress counts."""
        s = self.settings
        floats = {row.model: row.float_step_ms for row in rows}.values()
        epochs = (s.epochs + s.tuning_epochs) * sum(floats) + s.tuning_epochs * sum(row.step_ms for row in rows)
        return s.folds * epochs

    def train_model(self, model: str, rows: list[Row]) -> dict[str, Any]:
        """All folds of a model: float, fine-tuned float, and each row. Returns what the float models have to tell."""
        s, starts, tuned, predictions = self.settings, [], [], torch.full_like(self.y, -1)
        told = {"losses": [], "tuning_losses": []}
        for k, (fit, test) in enumerate(self.folds):
            self.watch.doing(f"{model}  float", k, s.folds)
            after_epoch = partial(self.watch.advance, rows[0].float_step_ms)
            torch.manual_seed(s.seed + k)
            start = MODELS[model]()
            told["losses"].append(
                train.fit(
                    start, self.x[fit], self.y[fit], epochs=s.epochs, lr=s.lr, seed=s.seed + k, after_epoch=after_epoch
                )
            )
            further = copy.deepcopy(start)
            told["tuning_losses"].append(self.tune(further, k, after_epoch))
            predictions[test] = train.logits(start, self.x[test]).argmax(1)
            for row in rows:
                row.predictions["float"][test] = train.logits(further, self.x[test]).argmax(1)
            starts.append(start)
            tuned.append(further)
        for row in rows:
            row.float_bytes = len(safetensors.torch.save(tuned[0].state_dict()))
        self.watch.finished_float(rows[0])
        for row in rows:
            for k in range(s.folds):
                self.watch.doing(f"{model}  {row.method} {row.config.bits} bits", k, s.folds, row)
                self.train_quantized(row, k, starts[k], tuned[k])
            self.watch.finished(row)
        layers = qk.plan(starts[0], [("*", rows[0].config)]).layers
        return told | {
            "start_accuracy": accuracy(predictions, self.y),
            "layers": [f"{layer.kind} {list(layer.shape)}" for layer in layers],
        }

    def tune(self, model: nn.Module, k: int, after_epoch: partial) -> list[float]:
        """The fine-tuning that float and quantized models both get."""
        fit, s = self.folds[k][0], self.settings
        return train.fit(
            model,
            self.x[fit],
            self.y[fit],
            epochs=s.tuning_epochs,
            lr=s.tuning_lr,
            seed=self.tuning_seed(k),
            after_epoch=after_epoch,
        )

    def tuning_seed(self, k: int) -> int:
        return self.settings.seed + self.settings.folds + k

    def train_quantized(self, row: Row, k: int, start: nn.Module, tuned: nn.Module) -> None:
        """Fold k of a row: the tuned float model rounded to nearest; the start model trained, converted and saved."""
        fit, test = self.folds[k]
        first = self.x[fit][train.orders(len(fit), 1, self.tuning_seed(k))[0][: train.BATCH]]  # training's first batch
        nearest = train.quantized(tuned, row.config, first)
        row.predictions["nearest"][test] = train.logits(nearest, self.x[test]).argmax(1)

        model = train.quantized(start, row.config, first)
        layers = {n: m for n, m in model.named_modules() if isinstance(m, (qk.nn.QuantLinear, qk.nn.QuantConv2d))}
        largest = max(layers, key=lambda name: layers[name].weight.numel())
        before = relative_weights(layers[largest])
        row.losses.append(self.tune(model, k, partial(self.watch.advance, row.step_ms)))
        if k == 0:
            row.histogram = histogram(largest, before, relative_weights(layers[largest]))
            row.weights = sum(layer.weight.numel() for layer in layers.values())
        best = train.logits(model, self.x[test]).topk(2)
        row.predictions["qat"][test] = best.indices[:, 0]
        row.margins[test] = best.values[:, 0] - best.values[:, 1]

        qk.convert_(model)
        qk.save_packed(model, self.folder(row, k))
        row.bytes.append(file_bytes(self.folder(row, k) / FILE, list(layers)))

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
