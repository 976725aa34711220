"""pytest-benchmark's view of the same subjects: ``pytest bench --benchmark-enable``; without it each runs once."""

import pytest
import torch

from qkernels.testing import CASES

from .quant import PASSES, make_inputs
from .subjects import OPS


def test_every_quantizer_can_be_chosen():
    assert set(OPS) == {case.name for case in CASES}
    assert all(subject.op == op for op, subjects in OPS.items() for subject in subjects(False))


@pytest.mark.parametrize("pass_", PASSES)
@pytest.mark.parametrize(
    "subject", [s for subjects in OPS.values() for s in subjects(True)], ids=lambda s: f"{s.op} {s.variant}"
)
@pytest.mark.parametrize("who", ["ours", "eager"])
def test_quantizer(benchmark, subject, pass_, who):
    benchmark.group = f"{subject.op} {subject.variant} {pass_}"
    run = PASSES[pass_][0](
        getattr(subject, who), make_inputs(subject, subject.shape or (1, 1 << 18), torch.float32, "cpu", 1)
    )
    result = benchmark(run, 0)
    assert torch.isfinite(result if pass_ == "fwd" else result[0]).all()
