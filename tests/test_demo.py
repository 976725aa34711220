"""The demo from end to end at its smallest, and the command line around it."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import qkernels as qk
from qkernels import backends
from qkernels.__main__ import main, notes
from qkernels.cli import app
from qkernels.demo.data import digits, split
from qkernels.demo.progress import Lines, OnTerminal, watch
from qkernels.demo.rows import Row, file_bytes
from qkernels.demo.run import Demo, DemoError, run
from qkernels.demo.settings import Settings
from qkernels.demo.table import cells, text_table
from qkernels.demo.workers import Workers

COMMAND = "qkernels demo --out somewhere"
SMALLEST = [
    "--methods",
    "lsq",
    "--bits",
    "2",
    "--models",
    "mlp",
    "--folds",
    "2",
    "--epochs",
    "1",
    "--tuning-epochs",
    "1",
    "--workers",
    "1",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mine(qk.LSQ):
    """A method that the demo has never heard of."""


class Recorder(Lines):
    rows: list[Row]

    def finish(self, rows: list[Row], summary: list[str], report: Path) -> None:
        self.rows, self.summary = rows, summary
        super().finish(rows, summary, report)


@dataclasses.dataclass
class Finished:
    out: Path
    settings: Settings
    results: dict
    rows: list[Row]
    summary: list[str]

    def demo(self) -> Demo:
        x, y = digits()
        folds = split(x, y, self.settings.folds, self.settings.seed)
        return Demo(self.settings, x, y, folds, self.out / "packed", Lines(), Workers(1))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """A run with POST and a method that is only registered."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(qk.METHODS, "Mine", Mine)
        settings = Settings(
            methods=("Mine", "POST"), bits=(2,), models=("mlp",), folds=2, epochs=3, tuning_epochs=2, workers=2
        )
        recorder = Recorder()
        results = run(settings, out, recorder, command=COMMAND)
    return Finished(out, settings, results, recorder.rows, recorder.summary)


class Elements(HTMLParser):
    """All tags with their attributes, the text, and the cells (td) of each table row that has any."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.table: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.table.append([])
        if tag == "td":
            self.table[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1][0] == "td" and data.strip():
            self.table[-1][-1] += data


def test_report_is_one_file_that_fetches_nothing(finished):
    text = (finished.out / "report.html").read_text()
    page = Elements(text)
    assert "//" not in re.sub(r"\s//\s", "", text), "an address"
    assert not re.findall(r"url\((?!#)|@import", text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    pointers = set(re.findall(r"url\(#(.*?)\)", text))
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe", "img", "object") and "src" not in attributes, (tag, attributes)
        for name in ("href", "xlink:href"):
            if name in attributes:
                assert attributes[name].startswith("#"), attributes
                pointers.add(attributes[name][1:])
    assert pointers and pointers <= set(ids)
    assert sum(tag == "svg" for tag, _ in page.tags) == 4
    assert not re.findall(r"#0[0-9a]0[0-9a]0[0-9a]\b", text), "a color of the figures that the page did not replace"
    assert COMMAND in page.text and torch.__version__ in page.text and finished.results["date"] in page.text


def test_results_are_complete_and_the_tables_agree(finished):
    saved = json.loads((finished.out / "results.json").read_text())
    assert saved == json.loads(json.dumps(finished.results))
    assert [(r["model"], r["method"], r["bits"]) for r in saved["rows"]] == [("mlp", "Mine", 2), ("mlp", "POST", 2)]
    page = [cells for cells in Elements((finished.out / "report.html").read_text()).table if cells]
    printed = text_table(finished.rows).splitlines()
    for saved_row, row, line, on_page in zip(saved["rows"], finished.rows, printed[1:], page, strict=True):
        for kind, classes in saved_row["predictions"].items():
            assert re.fullmatch(r"\d{1797}", classes), kind
            right = sum(a == b for a, b in zip(classes, saved["labels"], strict=True))
            assert saved_row["accuracy"][kind] == pytest.approx(100 * right / 1797)
        rights = [f"{saved_row['accuracy'][kind]:.2f}" for kind in ("float", "nearest", "qat", "packed")]
        sizes = [f"{saved_row[key]:,.0f}" for key in ("file_bytes", "float_file_bytes")]
        names, per_weight = ["mlp", saved_row["method"], "2"], f"{saved_row['bits_per_weight']:.2f}"
        won, ratio = f"{saved_row['won']} / {saved_row['lost']}", f"{saved_row['step_ratio']:.2f}"
        assert line.split() == cells(row) == [*names, *rights, *sizes, per_weight, ratio + "x"]
        assert on_page == [*names, *rights, won, *sizes, per_weight, ratio + "×"]
        assert len(line) < 100
        assert saved_row["won"] - saved_row["lost"] == round(
            17.97 * (saved_row["accuracy"]["qat"] - saved_row["accuracy"]["nearest"])
        )
        histogram, layer = saved_row["histogram"], qk.demo.models.mlp().get_submodule(saved_row["histogram"]["layer"])
        assert sum(histogram["before"]) == sum(histogram["after"]) == layer.weight.numel()
        assert [len(fold) for fold in saved_row["losses"]] == [finished.settings.tuning_epochs] * 2
        assert saved_row["step_ms"] > 0 and saved_row["step_ratio"] > 0
    assert all(len(line) < 100 for line in finished.summary)
    assert saved["settings"]["folds"] == 2 and saved["images"] == 1797
    assert [len(fold) for fold in saved["models"]["mlp"]["losses"]] == [finished.settings.epochs] * 2


def test_bytes_are_those_of_the_files(finished):
    for row in finished.rows:
        for k, sizes in enumerate(fold.bytes for fold in row.in_order()):
            size = (finished.out / "packed" / row.name / f"fold-{k + 1}" / "model.safetensors").stat().st_size
            parts = sum(n for part, n in sizes.items() if part != "file")
            assert size == sizes["file"] == parts < row.float_bytes
            assert sizes["codes"] == row.weights * 2 / 8  # 2 bits, and no layer of mlp has padding in its file
    assert 2 < finished.rows[0].bits_per_weight() < 3
    file = finished.out / "packed" / "mlp-post-2bit" / "fold-1" / "model.safetensors"
    assert file_bytes(file, ["first"])["codes"] == 128 * 64 * 2 / 8  # what is not of these layers is "other"


def test_one_process_gives_what_two_give(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(qk.METHODS, "Mine", Mine)
    alone = run(dataclasses.replace(finished.settings, workers=1), tmp_path, Lines(), command=COMMAND)
    for one, two in zip(alone["rows"], finished.results["rows"], strict=True):
        assert {k: v for k, v in one.items() if "step" not in k} == {k: v for k, v in two.items() if "step" not in k}


def test_every_image_is_tested_once():
    x, y = digits()
    for folds in (2, 5):
        parts = split(x, y, folds, seed=3)
        assert torch.cat([test for _, test in parts]).sort().values.equal(torch.arange(1797))
        assert all(not set(fit.tolist()) & set(test.tolist()) for fit, test in parts)


def test_packed_predicts_what_the_trained_model_does(finished):
    for row in finished.results["rows"]:
        assert row["predictions"]["packed"] == row["predictions"]["qat"]
        assert row["accuracy"]["qat"] > 50  # 10 % is chance: equal because trained, not because all is 0


def test_one_different_prediction_fails_the_demo(finished, monkeypatch):
    """The new process answers as it did in the run; one prediction of the trained model is another."""
    demo, row = finished.demo(), finished.rows[1]
    said = [r.predictions["packed"][test].tolist() for r in finished.rows for _, test in demo.folds]
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, json.dumps(said), "")
    )
    demo.run_packed(finished.rows)
    image = int(demo.folds[1][1][7])
    other = row.predictions["qat"].clone()
    other[image] = (other[image] + 1) % 10
    monkeypatch.setitem(row.predictions, "qat", other)
    with pytest.raises(DemoError, match=rf"mlp-post-2bit/fold-2: .* got 1 of 898 images that differ; image {image} is"):
        demo.run_packed(finished.rows)


def test_a_corrupted_file_fails_the_demo_and_is_named(tmp_path, monkeypatch):
    """From the command line: the new process names file and layer, the command fails."""
    save, saved = qk.save_packed, []

    def corrupt(model, path):
        save(model, path)
        saved.append(path)
        if len(saved) == 2:
            file = Path(path) / "model.safetensors"
            before = file.read_bytes()
            file.write_bytes(before.replace(rb"\"second\": {\"bits\": 2", rb"\"second\": {\"bits\": 4"))
            assert file.read_bytes() != before

    monkeypatch.setattr(qk, "save_packed", corrupt)
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *SMALLEST])
    assert done.exit_code == 1
    assert re.search(r"FAILED: .*mlp-lsq-2bit/fold-2/model.safetensors: weight 'second': ", done.stderr), done.stderr
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--bits", "9"], 2, "bits must be .* got 9"),
        (["--bits", "two"], 2, "--bits must be numbers with commas, got 'two'"),
        (["--bits", ","], 2, "bits must have at least one width, got none"),
        (["--methods", "lsq,magic"], 2, "methods must be among LSQ, .*got LSQ, magic"),
        (["--models", ""], 2, "models must be among conv, mlp, got none"),
        (["--bits", "1", "--methods", "lsq"], 1, r"LSQ\(bits=1, row\) cannot quantize conv"),
    ],
)
def test_wrong_options_get_a_sentence(arguments, code, message, tmp_path):
    done = CliRunner().invoke(app, ["demo", "--out", str(tmp_path), *arguments])
    assert done.exit_code == code
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_info_needs_neither_typer_nor_rich():
    """In a process of its own, as ``python -m qkernels``: a row for each op, a line for each missing backend."""
    block = "import sys, runpy; sys.modules.update(typer=None, rich=None); "
    start = "runpy.run_module('qkernels', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", block + start], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split("   ") for line in done.stdout.splitlines()]
    shown = {cells[0].strip(): [c.strip() for c in cells[1:] if c.strip()] for cells in lines}
    table = backends.table()
    assert table and shown["op"] == list(backends.NAMES)
    for op, have in table.items():
        assert shown[op] == [have[backend] for backend in backends.NAMES]
    for needed in (torch.__version__, qk.__version__, torch.ops.qkernels_cpu.isa("")):
        assert needed in done.stdout
    missing = [b for b in backends.NAMES if all(have[b] == "-" for have in table.values())]
    assert [line.split(":")[0] for line in done.stdout.splitlines() if ": missing: " in line] == missing


def test_notes_name_each_missing_backend(monkeypatch):
    monkeypatch.setattr(backends, "MISSING", {"cpu": "no compiler was found"})
    rows = {"lsq": {"cpu": "-", "cuda": "on request", "triton": "-", "reference": "yes"}}
    cpu, triton, on_request = notes(rows)
    assert cpu == "cpu: missing: no compiler was found"
    assert triton == "triton: missing: no op of this build has a kernel for it"
    assert on_request.startswith("on request: ")


@pytest.mark.parametrize(
    "command, absent, sentence",
    [
        ("demo", ["typer"], 'qkernels demo needs typer: pip install "qkernels[demo]"\n'),
        ("demo", ["sklearn", "jinja2"], 'qkernels demo needs scikit-learn, jinja2: pip install "qkernels[demo]"\n'),
        ("table", ["typer", "rich"], 'qkernels table needs typer, rich: pip install "qkernels[cli]"\n'),
    ],
)
def test_missing_packages_get_one_sentence(command, absent, sentence, monkeypatch, capsys):
    for module in absent:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(sys, "argv", ["qkernels", command])
    assert main() == 2
    assert capsys.readouterr() == ("", sentence)


def test_table_command_has_a_row_for_each_op():
    done = CliRunner().invoke(app, ["table"])
    assert done.exit_code == 0
    assert {line.split()[0] for line in done.output.splitlines()} >= {"op", *backends.table()}


def test_terminal_shows_table_and_time_left(finished):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30, color_system=None)
    shown = OnTerminal(console)
    shown.say("timing")
    shown.start(finished.rows, work=2.0)
    shown.doing("mlp  POST 2 bits", 1, 2, finished.rows[1])
    shown.advance(1.0)
    shown.live.refresh()
    live = console.file.getvalue()
    shown.finish(finished.rows, finished.summary, Path("out/report.html"))
    final = re.sub(r"\x1b\[[?\d;]*[A-Za-z]|\r", "", console.file.getvalue()[len(live) :])  # without cursor movements
    assert re.search(r"mlp  POST 2 bits  fold 2 of 2, \d+\.\d % right so far .* 50 % .* left", live)
    for row in finished.rows:
        assert re.search(r"\s+".join(map(re.escape, cells(row))), final)
    assert "out/report.html" in final and max(map(len, final.splitlines())) <= 100


def test_a_narrow_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich: stdout is a terminal
    for columns, kind in (("60", Lines), ("120", OnTerminal)):
        monkeypatch.setenv("COLUMNS", columns)
        with watch() as chosen:
            assert type(chosen) is kind
