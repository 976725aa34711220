"""What only a GPU can show; skipped without one. The generic tests of test_ops.py and test_matmul.py run there too."""

import pytest
import torch

import qkernels as qk
from qkernels import backends
from qkernels.ops.channel_error import reference
from qkernels.testing import CASES, usable
from qkernels.testing.compare import assert_same_bits, assert_sum

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def kernels():
    for case in CASES:
        for backend in ("cuda", "triton"):
            if backend in case.backends():
                yield pytest.param(case, backend, id=f"{case}-{backend}")


@pytest.mark.parametrize("case, backend", list(kernels()))
def test_offsets_beyond_2_gib(case, backend):
    """The end of a tensor of more than 2**31 bytes is treated as if it stood alone."""
    if not usable(case, backend, torch.bfloat16, "cuda"):
        pytest.skip("no bfloat16 there")
    end, n = 8193, (1 << 30) + 8193
    if torch.cuda.mem_get_info()[0] < 12 * n:
        pytest.skip("needs 12 GiB")
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.empty(n, dtype=torch.bfloat16, device="cuda").normal_(generator=g)
    grad = torch.empty_like(x).normal_(generator=g)
    params = [p.cuda() for p in case.parameters(1)]

    def run(x, grad):
        x = x.detach().requires_grad_()
        y = case.fn(x, *params, **case.plain, backend=backend)
        return y.detach(), *torch.autograd.grad(y, x, grad)

    y, dx = (t[-end:].clone() for t in run(x, grad))
    y_alone, dx_alone = run(x[-end:].clone(), grad[-end:].clone())
    assert_same_bits(y, y_alone, "value")
    assert_same_bits(dx, dx_alone, "dx")


@pytest.mark.parametrize("case, backend", list(kernels()))
def test_cuda_graph_replays(case, backend):
    """Captured once, replayed on other data: no synchronization, no allocation outside the pool."""
    x = torch.randn(64, 1024, device="cuda")
    params = [p.cuda() for p in case.parameters(64)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        case.fn(x, *params, **case.plain, backend=backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = case.fn(x, *params, **case.plain, backend=backend)
    x.copy_(torch.randn(64, 1024, device="cuda"))
    graph.replay()
    with torch.no_grad():
        assert_same_bits(y, case.fn(x, *params, **case.plain, backend=backend), "replayed")


@pytest.mark.parametrize("case, backend", list(kernels()))
def test_runs_on_the_current_stream(case, backend):
    """Work of a side stream that has not finished is waited for by order of the stream, not by luck."""
    x = torch.randn(1 << 22, device="cuda")
    params = [p.cuda() for p in case.parameters(1)]
    want = case.fn(x * 3, *params, **case.plain, backend=backend)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        got = case.fn(x * 3, *params, **case.plain, backend=backend)
    stream.synchronize()
    assert_same_bits(got, want, "on a side stream")


@pytest.mark.parametrize("backend", [b for b in ("cuda", "triton") if b in backends.backends_of("channel_error")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sums_of_channels_are_the_references(backend, dtype):
    for shape, dim in [((0, 3), 1), ((17,), 0), ((300, 33), 1), ((5, 7, 3), 1), ((2, 3, 100, 90), 1), ((70000, 40), 1)]:
        x, step = torch.randn(shape, device="cuda").to(dtype), torch.tensor([0.3], device="cuda")
        got = qk.channel_error(x, step, bits=4, dim=dim, signed=True, backend=backend)
        want = qk.channel_error(x, step, bits=4, dim=dim, signed=True, backend="reference")
        truth = reference.channel_error(x.double(), step, -8, 7, dim)
        for g, w, t in zip(got, want, truth, strict=True):
            assert_sum(g, w, t, 2 * t.abs(), f"{shape} {dim}")
