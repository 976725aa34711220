"""The README does what it says."""

import re
from pathlib import Path

from qkernels import backends

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    names, losses = {}, []
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        losses.append(names["loss"].item())
    assert (tmp_path / "out/packed/model.safetensors").exists()
    assert "2 of 2 layers quantized" in capsys.readouterr().out
    assert losses[1] < losses[0], "the second goes on where the first ends"


def test_the_table_of_backends_is_true():
    for names, *cells in re.findall(
        r"^\| (`\w+`(?:, `\w+`)*) \| (\S.*?) \| (\S.*?) \| (\S.*?) \| (\S.*?) \|$", README, re.M
    ):
        for name in re.findall(r"`(\w+)`", names):
            have = backends.table()[name]
            for backend, cell in zip(backends.NAMES, cells, strict=True):
                built = backend != "cuda" or "cuda" in backends.backends_of(name)
                assert not built or have[backend] == cell, (
                    f"{name} {backend}: README says {cell}, it is {have[backend]}"
                )


def test_every_function_is_in_the_table():
    section = README.partition("## What runs where")[2].partition("\n## ")[0]
    assert f"| {' | '.join(('function', *backends.NAMES))} |" in section, "the order of python -m qkernels"
    assert set(re.findall(r"^\| `(\w+)` ", section, re.M)) == set(backends.names())
