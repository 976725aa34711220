"""``qkernels verify``: it agrees here, and it sees a kernel that is wrong."""

import dataclasses

import pytest
import torch
from typer.testing import CliRunner

from qkernels import backends
from qkernels.cli import app
from qkernels.testing import CASES, OTHERS
from qkernels.verify import verify


def test_every_kernel_here_agrees():
    done = CliRunner().invoke(app, ["verify", "--device", "cpu", "--op", CASES[0].name])
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.output.splitlines()]
    assert [row[:3] for row in rows if row[1] == "cpu"] == [
        [CASES[0].name, "cpu", dtype] for dtype in ("float32", "float16", "bfloat16")
    ]
    assert "kernels agree with their reference on cpu" in done.output


@pytest.mark.parametrize("wrong", ["value", "parameter"])
def test_a_wrong_kernel_is_seen(wrong, monkeypatch):
    right = backends._OPS["lsq_fwd" if wrong == "value" else "lsq_bwd"]

    def forward(x, *args, kernel=right["cpu"]):
        y = kernel(x, *args)
        return y.reshape(-1).index_fill(0, torch.tensor([y.numel() - 1]), 0.125).reshape(y.shape) if y.numel() else y

    def backward(*args, kernel=right["cpu"]):
        dx, dstep = kernel(*args)
        return dx, dstep * 1.001

    monkeypatch.setitem(right, "cpu", forward if wrong == "value" else backward)
    done = CliRunner().invoke(app, ["verify", "--device", "cpu", "--op", "lsq"])
    assert done.exit_code == 1 and "DIFFERS after" in done.output and "lsq cpu [" in done.output, done.output


class CannotCompile(Exception):
    """As Triton's own errors: neither an AssertionError nor a RuntimeError."""


def test_a_kernel_that_does_not_compile_is_a_result_and_the_others_are_verified(monkeypatch):
    def broken(*args):
        raise CannotCompile("at 3:4")

    monkeypatch.setitem(backends._OPS["lsq_fwd"], "cpu", broken)
    rows = list(verify("cpu", ("lsq", "post")))
    assert {r.problem for r in rows if (r.op, r.backend) == ("lsq", "cpu")} == {"CannotCompile: at 3:4"}
    assert all(r.problem is None for r in rows if (r.op, r.backend) == ("post", "cpu"))


@pytest.mark.parametrize("arguments, message", [
    (["--op", "abacus"], "op must be among lsq, .*got abacus"),
    (["--device", "tpu"], "device must be cpu, or cuda with a GPU that torch can see, got tpu"),
])  # fmt: skip
def test_wrong_options_get_a_sentence(arguments, message):
    import re

    done = CliRunner().invoke(app, ["verify", *arguments])
    assert done.exit_code == 2 and re.search(message, done.stderr), done.stderr


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)
def test_ops_that_are_no_quantizers_agree_too(other):
    rows = list(verify("cpu", (other.name,)))
    assert [r.dtype for r in rows if r.backend == "cpu"] == [str(dtype)[6:] for dtype in other.dtypes]
    assert all(r.problem is None and r.calls > 10 for r in rows), rows


def test_every_op_is_verified():
    """But asq, which runs on lsq's kernels and has a case all the same."""
    assert {case.name for case in (*CASES, *OTHERS)} - {"asq"} == set(backends.names())


@pytest.mark.parametrize("op", [other.name for other in OTHERS])
def test_a_wrong_kernel_of_another_op_is_seen(op, monkeypatch):
    def wrong(*args, kernel=backends._OPS[op]["cpu"]):
        y = kernel(*args)
        return y + 0.01 * (torch.arange(y.numel()) == y.numel() - 1).reshape(y.shape)

    monkeypatch.setitem(backends._OPS[op], "cpu", wrong)
    row = next(r for r in verify("cpu", (op,)) if r.backend == "cpu")
    assert row.problem is not None


def test_poison_is_taken_back():
    list(verify("cpu", ("post",)))
    assert torch.are_deterministic_algorithms_enabled()  # as the tests have it
    assert dataclasses.is_dataclass(next(verify("cpu", ("post",))))
