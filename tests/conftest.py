import os
import warnings

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each core has a worker; waiting for a second thread costs more

import torch  # noqa: E402

if torch.cuda.is_available():
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what a deterministic matmul asks for
else:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton kernels run as Python on the CPU

with warnings.catch_warnings():  # Triton itself uses what Python 3.12+ deprecates
    warnings.simplefilter("ignore")
    import triton
    from triton.runtime import interpreter


def patch_once(patch):
    """Triton's interpreter exchanges all of triton.language anew at each call of a device function, half of its time:
    not where the kernel that is running has done so."""

    def patch_lang(fn):
        languages = [v for v in fn.__globals__.values() if v is triton.language or v is triton.language.core]
        done = languages and not any(triton.language.core.is_builtin(language.load) for language in languages)
        return None if done else patch(fn)  # of a device function the scope is not used

    interpreter._patch_lang = patch_lang


if os.environ.get("TRITON_INTERPRET") == "1" and hasattr(interpreter, "_patch_lang"):
    patch_once(interpreter._patch_lang)


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
