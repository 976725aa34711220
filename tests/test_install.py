"""Installing without a compiler gives a working package that says what is missing."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The package installed by pip from a copy of the sources, on a PATH without compiler, cmake and ninja."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("no pip here")
    folder = tmp_path_factory.mktemp("install")
    tools, source, target = folder / "bin", folder / "source", folder / "site"
    tools.mkdir()
    for tool in ("sh", "env", "uname"):
        (tools / tool).symlink_to(shutil.which(tool))
    ignore = shutil.ignore_patterns(".*", "build", "out", "*.so", "*.egg-info", "__pycache__", "tests")
    shutil.copytree(ROOT, source, ignore=ignore)
    run = subprocess.run(
        [sys.executable, "-m", "pip", "install", "-v", "--no-deps", "--no-build-isolation", "--target", target, source],
        env={"PATH": str(tools), "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    return target, run.stdout + run.stderr


def test_the_build_says_in_one_line_what_it_leaves_out(installed):
    _, said = installed
    lines = [line for line in said.splitlines() if "building without compiled kernels" in line]
    assert len(lines) == 1 and "was not found" in lines[0] and "Triton and reference backends work" in lines[0]


def test_it_trains_and_says_which_backends_are_missing(installed):
    target, _ = installed
    assert not list(target.glob("qkernels/*.so"))
    source = f"""
import torch, qkernels as qk
assert qk.__file__.startswith({str(target)!r}), qk.__file__
layer = torch.nn.Sequential(torch.nn.Linear(8, 4))
qk.prepare_(layer, [("*", qk.LSQ(bits=4))])
layer(torch.randn(3, 8)).sum().backward()
assert layer[0].weight.grad.abs().sum() > 0 and layer[0].weight_quantizer.step.grad is not None
qk.convert_(layer)
print(layer(torch.randn(3, 8)).shape)
"""
    environment = os.environ | {"PYTHONPATH": str(target)}
    run = subprocess.run([sys.executable, "-c", source], env=environment, capture_output=True, text=True, cwd=target)
    assert run.returncode == 0 and "torch.Size([3, 4])" in run.stdout, run.stderr
    table = subprocess.run(
        [sys.executable, "-m", "qkernels"], env=environment, capture_output=True, text=True, cwd=target
    )
    assert "the compiled kernels are not built" in table.stdout, table.stdout + table.stderr
