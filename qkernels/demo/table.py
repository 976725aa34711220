"""The demo's table as text: what terminal, log and report all show."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .rows import Row

# column -> width of what usually stands in it, so that a table does not move while it fills
WIDTHS = {
    "model": 5,
    "method": 6,
    "bits": 4,
    "float": 5,
    "nearest": 7,
    "QAT": 5,
    "packed": 6,
    "file bytes": 10,
    "float bytes": 11,
    "bits/weight": 11,
    "step": 5,
}
RIGHT = frozenset(WIDTHS) - {"model", "method"}


def cells(row: "Row") -> list[str]:
    """One line of the table; empty where there is no number yet."""
    accuracies = [row.accuracy(kind) for kind in ("float", "nearest", "qat", "packed")]
    right = ["" if a is None else f"{a:.2f}" for a in accuracies]
    size, bits = row.mean_bytes(), row.bits_per_weight()
    sizes = ["", "", ""] if size is None else [f"{size:,.0f}", f"{row.float_bytes:,}", f"{bits:.2f}"]
    return [row.model, row.method, str(row.config.bits), *right, *sizes, f"{row.step_ratio:.2f}x"]


def text_table(rows: list["Row"]) -> str:
    """The table with aligned columns, a blank line between models."""
    lines = [list(WIDTHS), *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text, model = [], rows[0].model
    for line in lines:
        if line is not lines[0] and line[0] != model:
            text.append("")
            model = line[0]
        fitted = [c.rjust(w) if name in RIGHT else c.ljust(w) for name, c, w in zip(WIDTHS, line, widths, strict=True)]
        text.append("  ".join(fitted).rstrip())
    return "\n".join(text)
