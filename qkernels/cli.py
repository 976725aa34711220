"""The commands, on typer and rich: ``qkernels demo``, ``verify``, ``table``. Without arguments see ``__main__``."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__, backends
from .__main__ import notes
from .demo.settings import Settings
from .methods import presets

DEFAULT = Settings()

app = typer.Typer(
    help="Quantization-aware training and low-bit inference. Without a command: what this install can run.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def table() -> None:
    """Each op and the backends that can run it."""
    from rich.console import Console
    from rich.table import Table

    rows = backends.table()
    grid = Table("op", *backends.NAMES, box=None, pad_edge=False, header_style="bold")
    style = {"yes": "green", "on request": "yellow", "-": "dim"}
    for op, have in rows.items():
        grid.add_row(op, *(f"[{style[have[b]]}]{have[b]}" for b in backends.NAMES))
    console = Console()
    console.print(grid)
    for line in notes(rows):
        console.print(line, style="dim", highlight=False, markup=False)


@app.command()
def verify(
    device: Annotated[str, typer.Option(help="cpu or cuda; by default cuda where torch sees a GPU.")] = "",
    op: Annotated[list[str] | None, typer.Option(help="Only this op; may be given several times.")] = None,
) -> None:
    """The kernels here against their references: values and gradients. Exit status 1 if one differs."""
    import torch

    from .verify import verify

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        print(
            f"qkernels verify: device must be cpu, or cuda with a GPU that torch can see, got {device}", file=sys.stderr
        )
        raise typer.Exit(2)
    wrong = right = 0
    try:
        for row in verify(device, tuple(op or ())):
            said = (
                f"{row.calls} calls agree" if row.problem is None else f"DIFFERS after {row.calls} calls: {row.problem}"
            )
            print(f"{row.op:15s}{row.backend:10s}{row.dtype:10s}{said}", flush=True)
            right, wrong = right + (row.problem is None), wrong + (row.problem is not None)
    except ValueError as error:
        print(f"qkernels verify: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if not right + wrong:
        print(f"no kernel of this install can run on {device}; `qkernels` says why")
    else:
        print(f"{right} of {right + wrong} kernels agree with their reference on {device}")
    raise typer.Exit(1 if wrong else 0)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, results.json and packed/.")] = Path("out"),
    methods: Annotated[str, typer.Option(help="How to quantize the weights.")] = ",".join(DEFAULT.methods).lower(),
    bits: Annotated[str, typer.Option(help="Widths of the weights.")] = ",".join(map(str, DEFAULT.bits)),
    models: Annotated[str, typer.Option(help="What to train.")] = ",".join(DEFAULT.models),
    folds: Annotated[int, typer.Option(min=2, max=20, help="Of the cross-validation.")] = DEFAULT.folds,
    epochs: Annotated[int, typer.Option(min=1, help="Of the float training.")] = DEFAULT.epochs,
    tuning_epochs: Annotated[int, typer.Option(min=1, help="Of the fine-tuning after it.")] = DEFAULT.tuning_epochs,
    seed: Annotated[int, typer.Option(min=0, help="Of folds, first weights and batches.")] = DEFAULT.seed,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the training.")] = DEFAULT.workers,
    quick: Annotated[bool, typer.Option("--quick", help="2 folds, a third of the epochs: a look, no result.")] = False,
) -> None:
    """Train, convert, save, load in a new process and run packed, on real data; writes a report."""
    from .demo.progress import watch
    from .demo.run import DemoError, run

    if quick:
        folds, epochs, tuning_epochs = 2, max(1, epochs // 3), max(1, tuning_epochs // 3)
    try:
        settings = Settings(
            methods=_methods(methods),
            bits=_numbers("--bits", bits),
            models=_words(models),
            folds=folds,
            epochs=epochs,
            tuning_epochs=tuning_epochs,
            seed=seed,
            workers=workers,
        )
    except ValueError as error:
        print(f"qkernels demo: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    try:
        with watch() as progress:
            run(settings, out, progress, command=_command())
    except DemoError as error:
        print(f"qkernels demo: FAILED: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _command() -> str:
    """The command line as typed, without the place where Python lies."""
    program = Path(sys.argv[0]).name
    return f"{'python -m qkernels' if program == '__main__.py' else program} {shlex.join(sys.argv[1:])}"


def _words(text: str) -> tuple[str, ...]:
    """The parts of a list with commas, each once, in order."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _methods(text: str) -> tuple[str, ...]:
    """Names of ``presets``, however they are capitalized; an unknown one is left for Settings to refuse."""
    known = {name.lower(): name for name in presets()}
    return tuple(known.get(word.lower(), word) for word in _words(text))


def _numbers(name: str, text: str) -> tuple[int, ...]:
    words = _words(text)
    if not all(word.isdecimal() for word in words):
        raise ValueError(f"{name} must be numbers with commas, got {text!r}")
    return tuple(map(int, words))
