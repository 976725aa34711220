import os
import warnings

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run as Python on the CPU

with warnings.catch_warnings():  # Triton itself uses what Python 3.12+ deprecates
    warnings.simplefilter("ignore")
    import triton  # noqa: F401


@pytest.fixture(autouse=True)
def poison():
    """torch.empty returns NaN: a kernel that leaves an element unwritten fails its comparison. One seed for all."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def isa():
    """Sets the CPU kernels' instruction set; the best one is back after the test."""
    ask = torch.ops.qkernels_cpu.isa
    before = ask("")
    yield ask
    ask(before)
