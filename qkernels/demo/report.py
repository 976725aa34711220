"""``results.json`` as one page: a table and four figures, nothing fetched from anywhere."""

import io
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

Results = dict[str, Any]

# Matplotlib draws with these colors, and the page replaces them by its own, so that figures follow light and dark.
_INK, _SOFT, _BACK = "#010101", "#020202", "#030303"
_SERIES = tuple(f"#0a0a{i:02x}" for i in range(8))
_PAGE = {_INK: "currentColor", _SOFT: "var(--soft)", _BACK: "var(--back)"} | {
    c: f"var(--series-{i})" for i, c in enumerate(_SERIES)
}
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "text.color": _INK,
    "lines.linewidth": 1.4,
    "axes.linewidth": 0.7,
    **{f"{axis}tick.color": _INK for axis in "xy"},
    **{f"{axis}tick.major.{what}": value for axis in "xy" for what, value in (("width", 0.7), ("size", 3))},
    "ytick.minor.size": 0,
}
_PARTS = {
    "codes": "codes",
    "scale": "scales",
    "levels": "levels",
    "other": "biases, activation quantizers",
    "header": "header",
}


def render(results: Results) -> str:
    """The page as html."""
    draw = {"accuracy": accuracy, "weights": weights, "losses": losses, "sizes": sizes}
    if panels := claim_panels(results):
        draw["claims"] = partial(claims, panels=panels)
    with matplotlib.rc_context(_STYLE):
        figures = {name: svg(name, figure(results)) for name, figure in draw.items()}
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"count": "{:,.0f}".format, "fixed": lambda value, digits=2: f"{value:.{digits}f}"}
    return jinja.from_string(template).render(
        r=results,
        figures=figures,
        error=standard_error(results),
        predictions=predictions(results),
        float_steps=float_steps(results),
        shown=_largest(results),
    )


def summary(results: Results) -> list[str]:
    """What must be said below the table, in lines of less than 100 columns."""
    settings = results["settings"]
    return [
        f"accuracy in % of {results['images']:,} images, each tested once in {settings['folds']}-fold "
        f"cross-validation; standard error {standard_error(results):.2f}",
        "nearest: the float model rounded, no training; float had as many epochs as QAT",
        f"all weights are quantized, all layer inputs but the pixels too ({results['activation']})",
        f"step: time of a training step against float's, side by side ({float_steps(results)})",
        f"packed = QAT in all {predictions(results):,} predictions, made by a process that loaded the files",
    ]


def float_steps(results: Results) -> str:
    """The time of a float training step of each model."""
    return ", ".join(
        {row["model"]: f"{row['model']} {row['float_step_ms']:.1f} ms" for row in results["rows"]}.values()
    )


def predictions(results: Results) -> int:
    """How many predictions of packed models there are."""
    return sum(len(row["predictions"]["packed"]) for row in results["rows"])


def standard_error(results: Results) -> float:
    """Of one accuracy, in points, at the mean QAT accuracy: sqrt(p (1 - p) / n)."""
    p = sum(row["accuracy"]["qat"] for row in results["rows"]) / len(results["rows"]) / 100
    return 100 * math.sqrt(p * (1 - p) / results["images"])


def accuracy(results: Results) -> Figure:
    """For each model and width: rounded to nearest -> trained, float as a line."""
    figure, panels = _panels(results, height=3.3, sharey=True)
    methods, bits = results["settings"]["methods"], results["settings"]["bits"]
    apart = min(0.22, 0.8 / len(methods))
    for model, axes in panels.items():
        level = _rows(results, model)[0]["accuracy"]["float"]
        error = 100 * math.sqrt(level / 100 * (1 - level / 100) / results["images"])
        axes.axhspan(level - error, level + error, color=_SOFT, alpha=0.18, lw=0)
        axes.axhline(level, color=_INK, lw=1)
        for row in _rows(results, model):
            i = methods.index(row["method"])
            at = bits.index(row["bits"]) + apart * (i - (len(methods) - 1) / 2)
            before, after = row["accuracy"]["nearest"], row["accuracy"]["qat"]
            axes.plot([at, at], [before, after], color=_color(i), lw=1.4, alpha=0.6, zorder=2)
            axes.plot(at, before, "o", color=_color(i), mfc=_BACK, mew=1.2, ms=4.5, zorder=3)
            axes.plot(at, after, "o", color=_color(i), ms=5, zorder=4)
        axes.set_xticks(range(len(bits)), [f"{b} bits" for b in bits])
        axes.set_xlim(-0.5, len(bits) - 0.5)
        axes.set_title(model)
    next(iter(panels.values())).set_ylabel("accuracy, %")
    keys = [Line2D([], [], color=_INK, lw=1, label="float ± standard error")]
    keys += [Line2D([], [], color=_INK, marker="o", mfc=_BACK, mew=1.2, ms=4.5, ls="", label="rounded to nearest")]
    keys += [Line2D([], [], color=_color(i), marker="o", ls="", label=f"{m}, trained") for i, m in enumerate(methods)]
    _legend(figure, keys)
    return figure


def weights(results: Results) -> Figure:
    """Histograms of one layer's weights over their scale, before and after training, against the levels."""
    methods, bits = results["settings"]["methods"], results["settings"]["bits"]
    model = _largest(results)["model"]
    figure = Figure(figsize=(7.6, 0.6 + 1.55 * len(methods)))
    grid = figure.subplots(len(methods), len(bits), squeeze=False)
    for row in _rows(results, model):
        i, j = methods.index(row["method"]), bits.index(row["bits"])
        axes, data = grid[i][j], row["histogram"]
        edges = [
            data["low"] + (data["high"] - data["low"]) * k / len(data["after"]) for k in range(len(data["after"]) + 1)
        ]
        for level in data["levels"]:
            axes.axvline(level, color=_SOFT, lw=0.7, alpha=0.75, zorder=1)
        if data["levels_before"] != data["levels"]:
            top = axes.get_xaxis_transform()
            axes.plot(data["levels_before"], [1] * len(data["levels_before"]), "|", color=_INK, ms=7, transform=top)
        axes.stairs(data["after"], edges, fill=True, color=_color(i), alpha=0.75, lw=0, zorder=2)
        axes.stairs(data["before"], edges, color=_INK, lw=0.9, zorder=3)
        axes.set_xlim(data["low"], data["high"])
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_title(f"{row['method']}, {row['bits']} bits", fontsize=9.5)
    for axes in grid[-1]:
        axes.set_xlabel("weight / scale of its row", fontsize=9)
    keys = [
        Line2D([], [], color=_INK, lw=0.9, label="before: the float weights"),
        Patch(color=_SOFT, alpha=0.75, label="after training"),
    ]
    keys += [Line2D([], [], color=_SOFT, lw=0.7, label="levels")]
    keys += [Line2D([], [], color=_INK, marker="|", ls="", ms=7, label="levels before, where they moved")]
    _legend(figure, keys)
    return figure


def claim_panels(results: Results) -> list[Callable[[Axes], None]]:
    """What can be shown of the papers' claims with the methods of this run: a drawing each."""
    rows = [row for row in results["rows"] if row["model"] == _largest(results)["model"]]
    methods, narrow = results["settings"]["methods"], min(results["settings"]["bits"])
    named = {row["method"]: row for row in rows if row["bits"] == narrow}
    panels: list[Callable[[Axes], None]] = []

    def color(row: dict[str, Any]) -> str:
        return _color(methods.index(row["method"]))

    def clusters(axes: Axes) -> None:
        for row in (named[m] for m in ("LSQ", "CPQ") if m in named):
            counts = row["claims"]["residuals"]["after"]
            edges = [k / len(counts) - 0.5 for k in range(len(counts) + 1)]
            axes.stairs([c / sum(counts) for c in counts], edges, color=color(row), label=row["method"], lw=1.3)
        axes.set_title(f"CPQ: clusters at {narrow} bits")
        axes.set_xlabel("weight - level, in spacings")
        axes.set_ylabel("share of weights")
        axes.legend(fontsize=8, handlelength=1.2)

    def gap(axes: Axes) -> None:
        part = [k / 200 for k in range(201)]
        for temperature, dash in ((2, ":"), (8, "--"), (32, "-.")):
            soft = [1 / (1 + math.exp(-temperature * (math.exp(d - 1) - math.exp(-d)))) for d in part]
            hard = [s - (d > 0.5) for s, d in zip(soft, part, strict=True)]
            axes.plot(part, hard, color=_SOFT, ls=dash, lw=1.1, label=f"fixed {temperature}")
        axes.plot([0, 1], [0, 0], color=color(named["DAQ"]), lw=1.8, label="adaptive")
        axes.set_title("DAQ: soft - hard code")
        axes.set_xlabel("weight between two codes")
        axes.legend(fontsize=8, handlelength=1.6, title="temperature", title_fontsize=8)

    def moves(axes: Axes) -> None:
        row = max((row for row in rows if row["claims"]["levels"] and row["bits"] <= 3), key=lambda row: row["bits"])
        for level in zip(*row["claims"]["levels"], strict=True):
            axes.plot(range(len(level)), level, color=color(row), lw=1.2)
        axes.set_title(f"{row['method']}: levels move, {row['bits']} bits")
        axes.set_xlabel("epoch of fine-tuning")

    def betas(axes: Axes) -> None:
        row = next(row for row in rows if row["claims"]["betas"])
        for k, (layer, values) in enumerate(row["claims"]["betas"].items()):
            share = [i / (len(values) - 1) for i in range(len(values))]
            axes.plot(share, sorted(values), color=color(row), ls=("-", "--", ":")[k % 3], label=f"input of {layer}")
        axes.axhline(1, color=_SOFT, lw=0.7)
        axes.set_title(f"{row['method']}: a step for each sample")
        axes.set_xlabel("share of test images")
        axes.set_ylabel("step / common step")
        axes.legend(fontsize=8, handlelength=1.6)

    def widths(axes: Axes) -> None:
        learned = [row for row in rows if row["widths"]]
        layers = list(learned[0]["widths"])
        for k, row in enumerate(learned):
            means = [sum(row["widths"][layer]) / len(row["widths"][layer]) for layer in layers]
            at = [i + 0.26 * (k - (len(learned) - 1) / 2) for i in range(len(layers))]
            axes.bar(at, means, 0.22, color=color(row), alpha=1 - 0.28 * k, label=f"from {row['bits']}")
        axes.set_xticks(range(len(layers)), layers)
        axes.set_title(f"{learned[0]['method']}: learned bits, mean of folds")
        axes.legend(fontsize=8, handlelength=1, ncols=len(learned))
        axes.set_ylim(0, 1.3 * max(row["bits"] for row in learned))

    if "CPQ" in named:
        panels.append(clusters)
    if "DAQ" in named:
        panels.append(gap)
    if any(row["claims"]["levels"] and row["bits"] <= 3 for row in rows):
        panels.append(moves)
    if any(row["claims"]["betas"] for row in rows):
        panels.append(betas)
    if any(row["widths"] for row in rows):
        panels.append(widths)
    return panels


def claims(results: Results, panels: list[Callable[[Axes], None]]) -> Figure:
    """One panel a claim, three in a line."""
    lines = -(-len(panels) // 3)
    figure = Figure(figsize=(7.6, 2.5 * lines))
    grid = figure.subplots(lines, min(3, len(panels)), squeeze=False).flatten()
    for draw, axes in zip(panels, grid, strict=False):
        draw(axes)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return figure


def losses(results: Results) -> Figure:
    """Training loss by epoch, mean over folds: float, then float and quantized fine-tuning from the same start."""
    methods, bits, start = (results["settings"][key] for key in ("methods", "bits", "epochs"))
    models = list(results["models"])
    figure = Figure(figsize=(7.6, 0.7 + 2.1 * len(models)))
    grid = figure.subplots(len(models), len(bits), squeeze=False, sharex=True, sharey="row")
    further = [start + 1 + k for k in range(results["settings"]["tuning_epochs"])]
    for model, line in zip(models, grid, strict=True):
        told = results["models"][model]
        for width, axes in zip(bits, line, strict=True):
            axes.plot(range(1, start + 1), _mean(told["losses"]), color=_INK, lw=1.2)
            axes.plot(further, _mean(told["tuning_losses"]), color=_INK, lw=1.2)
            for row in _rows(results, model):
                if row["bits"] == width:
                    axes.plot(further, _mean(row["losses"]), color=_color(methods.index(row["method"])), lw=1.2)
            axes.axvline(start + 0.5, color=_SOFT, lw=0.7)
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_title(f"{model}, {width} bits")
        line[0].set_ylabel("training loss")
    for axes in grid[-1]:
        axes.set_xlabel("epoch")
    keys = [Line2D([], [], color=_INK, lw=1.2, label="float")]
    _legend(figure, keys + [Line2D([], [], color=_color(i), label=m) for i, m in enumerate(methods)])
    return figure


def sizes(results: Results) -> Figure:
    """What the bytes of each packed file are."""
    figure, panels = _panels(results, height=0.95 + 0.24 * len(results["rows"]) / len(results["models"]), sharey=True)
    for model, axes in panels.items():
        rows = _rows(results, model)[::-1]
        left = [0.0] * len(rows)
        for i, part in enumerate(_PARTS):
            widths = [row["bytes"][part] / 1000 for row in rows]
            axes.barh(range(len(rows)), widths, 0.68, left=left, color=_color(i), lw=0)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for at, (row, end) in enumerate(zip(rows, left, strict=True)):
            share = row["float_file_bytes"] / row["file_bytes"]
            axes.annotate(f"1/{share:.1f}", (end, at), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [f"{row['method']} {row['bits']} bits" for row in rows])
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, 1.14 * max(left))
        axes.set_xlabel("kB")
        axes.set_title(f"{model}: {rows[0]['float_file_bytes'] / 1000:.1f} kB in float")
    keys = [Patch(color=_color(i), label=label) for i, label in enumerate(_PARTS.values())]
    _legend(figure, keys)
    return figure


def svg(name: str, figure: Figure) -> Markup:
    """The figure as an element of the page: no prologue, no metadata, no address, the page's colors."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # ids that do not clash with another figure's
        figure.savefig(stream, format="svg")
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r'\s(xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'<svg([^>]*?)\swidth="[^"]*"', r"<svg\1", text)
    text = re.sub(r'<svg([^>]*?)\sheight="[^"]*"', r'<svg\1 role="img"', text)
    text = re.sub(r'id="(figure|axes|patch|text|line2d|legend|matplotlib\.axis|xtick|ytick)_\d+"', "", text)
    for color, variable in _PAGE.items():
        text = text.replace(color, variable)
    return Markup(text)


def _panels(results: Results, height: float, sharey: bool = False) -> tuple[Figure, dict[str, Axes]]:
    """One panel for each model, side by side."""
    figure = Figure(figsize=(7.6, height))
    panels = figure.subplots(1, len(results["models"]), squeeze=False, sharey=sharey)[0]
    return figure, dict(zip(results["models"], panels, strict=True))


def _legend(figure: Figure, keys: list[Any]) -> None:
    """Above the figure, in lines of at most four."""
    lines = -(-len(keys) // 4)
    figure.legend(
        handles=keys, loc="outside upper left", ncols=-(-len(keys) // lines), handlelength=1.4, columnspacing=1.4
    )


def _rows(results: Results, model: str) -> list[dict[str, Any]]:
    return [row for row in results["rows"] if row["model"] == model]


def _largest(results: Results) -> dict[str, Any]:
    """The first row of the model whose histogram counts most weights."""
    return max(results["rows"], key=lambda row: sum(row["histogram"]["after"]))


def _mean(curves: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]


def _color(i: int) -> str:
    return _SERIES[i % len(_SERIES)]
