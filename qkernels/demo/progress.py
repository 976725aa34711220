"""What the demo shows while it runs: a live table and time left on a terminal, a line per finished row elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .table import RIGHT, WIDTHS, cells, text_table

if TYPE_CHECKING:
    from .rows import Row


class Watch(Protocol):
    """Whom the demo tells what it does."""

    def say(self, text: str) -> None: ...
    def start(self, rows: list["Row"], work: float) -> None: ...
    def doing(self, what: str, fold: int, folds: int, row: "Row | None" = None) -> None: ...
    def advance(self, work: float) -> None: ...
    def finished_float(self, row: "Row") -> None: ...
    def finished(self, row: "Row") -> None: ...
    def stop(self) -> None: ...
    def finish(self, rows: list["Row"], summary: list[str], report: Path) -> None: ...


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """The one that fits stdout; what it shows is tidied up if the demo fails."""
    console = Console()
    width = sum(WIDTHS.values()) + 2 * len(WIDTHS)
    chosen = OnTerminal(console) if console.is_terminal and console.width >= width else Lines()
    try:
        yield chosen
    finally:
        chosen.stop()


class Lines:
    """For logs: one line for each finished row, none in between."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:4.0f} s  {text}", flush=True)

    def start(self, rows: list["Row"], work: float) -> None:
        pass

    def doing(self, what: str, fold: int, folds: int, row: "Row | None" = None) -> None:
        pass

    def advance(self, work: float) -> None:
        pass

    def finished_float(self, row: "Row") -> None:
        self.say(f"{row.model}: float trained, {row.accuracy('float'):.2f} % of {len(row.labels):,} images right")

    def finished(self, row: "Row") -> None:
        self.say(
            f"{row.model}: {row.method} {row.config.bits} bits trained, {row.accuracy('qat'):.2f} % right "
            f"(rounded to nearest {row.accuracy('nearest'):.2f} %, float {row.accuracy('float'):.2f} %)"
        )

    def stop(self) -> None:
        pass

    def finish(self, rows: list["Row"], summary: list[str], report: Path) -> None:
        print("\n".join(["", text_table(rows), "", *summary, f"report: {report}"]), flush=True)


class OnTerminal:
    """The table as it fills, and a bar with the time left."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[Row] = []
        self.live: Live | None = None
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(), TextColumn("left"), console=console, speed_estimate_period=60,
        )  # fmt: skip

    def say(self, text: str) -> None:
        if self.live is None:
            self.console.print(text, style="dim", highlight=False, markup=False)
        else:
            self.bar.update(self.task, description=text)

    def start(self, rows: list["Row"], work: float) -> None:
        self.rows = rows
        self.task = self.bar.add_task("", total=work)
        self.live = Live(get_renderable=self._picture, console=self.console, refresh_per_second=4, transient=True)
        self.live.start()

    def doing(self, what: str, fold: int, folds: int, row: "Row | None" = None) -> None:
        so_far = row.accuracy("qat") if row is not None else None
        right = "" if so_far is None else f", {so_far:.1f} % right so far"
        self.bar.update(self.task, description=f"{what}  fold {fold + 1} of {folds}{right}")

    def advance(self, work: float) -> None:
        self.bar.advance(self.task, work)

    def finished_float(self, row: "Row") -> None:
        pass

    def finished(self, row: "Row") -> None:
        pass

    def stop(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def finish(self, rows: list["Row"], summary: list[str], report: Path) -> None:
        self.stop()
        self.console.print(self._table(), "")
        for line in summary:
            self.console.print(line, style="dim", highlight=False, markup=False)
        self.console.print(f"report: {report}", highlight=False, markup=False, soft_wrap=True)

    def _picture(self) -> Group:
        fits = len(self.rows) + 6 <= self.console.height
        return Group(self._table(), "", self.bar) if fits else Group(self.bar)

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name, width in WIDTHS.items():
            table.add_column(name, justify="right" if name in RIGHT else "left", no_wrap=True, min_width=width)
        for before, row in zip([None, *self.rows], self.rows, strict=False):
            if before is not None and before.model != row.model:
                table.add_row()
            table.add_row(*cells(row))
        return table
