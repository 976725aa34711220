"""What only a GPU can show; skipped without one. The generic tests of test_ops.py and test_matmul.py run there too."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch.export.passes import move_to_device_pass

import qkernels as qk
from qkernels import backends
from qkernels.ops.channel_error import reference
from qkernels.ops.lut_linear.plan import MOST_PREFILL_ROWS, MOST_ROWS
from qkernels.pack import PLANES
from qkernels.testing import CASES, usable
from qkernels.testing.compare import assert_same_bits, assert_sum

from .test_matmul import assert_twice_as_good, make, randint, randn

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


# Packed weights. N, K, scales: groups of 32, 64, 128 and 256 columns, and rows of K that no tile divides.
WEIGHTS = [(33, 96, 99), (40, 704, 440), (64, 640, 320), (129, 768, 387), (17, 709, 17), (4096, 4096, 4096 * 32)]
LUT = [b for b in ("cuda", "triton") if b in backends.backends_of("lut_linear")]
with_cuda = pytest.mark.skipif("cuda" not in LUT, reason="no CUDA kernels in this build")
ROWS = (1, 2, 4, 5, 8, 9, 16, 17, 33, MOST_ROWS, MOST_ROWS + 1, 300)


@pytest.mark.parametrize("backend", LUT)
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(("N", "K", "P"), WEIGHTS)
def test_packed_weights_multiply_integers_exactly(backend, bits, N, K, P):
    w = make(N, K, bits=bits, P=P, integers=True)
    w = qk.LutWeight.pack(w.unpack(), w.levels.clamp(-8, 7), torch.ones(P), bits=bits).to("cuda")  # sums below 2**24
    dense, bias = w.dequantize().double(), randint(N, seed=2).cuda()
    for M in ROWS:
        x = randint(M, K).cuda()
        want = x.double() @ dense.T
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            assert torch.equal(qk.lut_linear(x.to(dtype), w, backend=backend), want.to(dtype))
            assert torch.equal(qk.lut_linear(x.to(dtype), w, bias, backend=backend), (want + bias).to(dtype))


# What the other weights do not reach on a device of this size: several stripes a block, fewer warps, K in parts; with
# scales of 32 columns too.
SPREAD = [(1024, 8192, 64), (16, 16384, 16), (16, 16384, 16 * 512), (14336, 4096, 14336 * 32), (40000, 256, 40000)]


@with_cuda
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(("N", "K", "P"), SPREAD)
def test_decoding_is_right_however_it_is_spread(bits, N, K, P):
    w, whole = make(N, K, bits=bits, P=P).to("cuda"), make(N, K, bits=bits, P=P, integers=True)
    whole = qk.LutWeight.pack(whole.unpack(), whole.levels.clamp(-8, 7), torch.ones(P), bits=bits).to("cuda")
    for M in (1, 9, MOST_ROWS):
        for dtype in (torch.float16, torch.bfloat16):
            x = randint(M, K).cuda()
            want = x.double() @ whole.dequantize().double().T
            assert torch.equal(qk.lut_linear(x.to(dtype), whole, backend="cuda"), want.to(dtype))
            x = randn(M, K).to("cuda", dtype)
            assert_twice_as_good(qk.lut_linear(x, w, backend="cuda"), x, w.dequantize(), None)


@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(("N", "K", "P"), [w for w in WEIGHTS if w[1] * w[0] // w[2] % 64 == 0 or w[0] == w[2]])
def test_the_wgmma_kernel_multiplies_integers_exactly_and_sums_as_well_as_plain_pytorch(bits, N, K, P, monkeypatch):
    if "cuda" not in LUT or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs the CUDA kernels and sm_90")
    monkeypatch.setenv("QKERNELS_WGMMA", "1")
    whole = make(N, K, bits=bits, P=P, integers=True)
    whole = qk.LutWeight.pack(whole.unpack(), whole.levels.clamp(-8, 7), torch.ones(P), bits=bits).to("cuda")
    any_levels, bias = make(N, K, bits=bits, P=P).to("cuda"), randint(N, seed=2).cuda()
    for M in (MOST_ROWS + 1, 128, 129, 300, MOST_PREFILL_ROWS):
        for dtype in (torch.float16, torch.bfloat16):
            x = randint(M, K).cuda()
            want = x.double() @ whole.dequantize().double().T + bias
            assert torch.equal(qk.lut_linear(x.to(dtype), whole, bias, backend="cuda"), want.to(dtype))
            x = randn(M, K).to("cuda", dtype)
            got = qk.lut_linear(x, any_levels, bias.to(dtype), backend="cuda")
            assert_twice_as_good(got, x, any_levels.dequantize(), bias.to(dtype))


@pytest.mark.parametrize("backend", LUT)
@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(("N", "K", "P"), WEIGHTS)
def test_packed_weights_become_the_same_floats(backend, bits, N, K, P):
    w = make(N, K, bits=bits, P=P).to("cuda")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        got, want = qk.lut_dequantize(w, dtype, backend=backend), w.dequantize().to(dtype)
        assert torch.equal(got, want) and torch.equal(got.signbit(), want.signbit())


@pytest.mark.parametrize("backend", LUT)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_sums_with_packed_weights_are_within_twice_the_error_of_plain_pytorch(backend, dtype, bits):
    """Levels that x's dtype cannot hold, in float32 all the same; or, for many rows, in that dtype, as there."""
    for N, K, P in WEIGHTS:
        w = make(N, K, bits=bits, P=P).to("cuda")
        for M in (1, 9, 40, MOST_ROWS + 1, 300):
            x, bias = randn(M, K).to("cuda", dtype), randn(N).to("cuda", dtype)
            assert_twice_as_good(qk.lut_linear(x, w, bias, backend=backend), x, w.dequantize(), bias)


@with_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_levels_are_not_rounded_to_the_dtype_of_x(dtype):
    """One column of x is 1: the sum is a weight, and what is left of it after rounding is another."""
    for factor in (1e-6, 0.1, 1e4):
        w = make(64, 256, bits=4, P=64)
        w = qk.LutWeight.pack(w.unpack(), w.levels * factor, torch.ones(64), bits=4).to("cuda")
        column = w.dequantize()[:, 5]
        x = torch.zeros(1, 256, device="cuda", dtype=dtype)
        x[0, 5] = 1
        high = column.to(dtype)
        got = qk.lut_linear(x, w, -high.float(), backend="cuda")[0]
        if high.isfinite().all():
            assert torch.equal(got, (column - high.float()).to(dtype))


@with_cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("N", "K", "P"), WEIGHTS)
def test_a_row_gives_the_same_bits_in_any_batch_that_is_decoded(dtype, N, K, P):
    w, x = make(N, K, P=P).to("cuda"), randn(MOST_ROWS, K).to("cuda", dtype)
    together = qk.lut_linear(x, w, backend="cuda")
    for _ in range(3):
        assert torch.equal(qk.lut_linear(x, w, backend="cuda"), together)
    for m in (0, 7, 8, 40, MOST_ROWS - 1):
        assert torch.equal(qk.lut_linear(x[m : m + 1], w, backend="cuda")[0], together[m])


@pytest.mark.parametrize("backend", LUT)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_of_scales_changes_no_bit(scale_dtype, dtype, backend):
    for bits in PLANES:
        for P in (64, 64 * 4, 64 * 8):
            w = make(64, 256, bits=bits, P=P).to("cuda")
            low = dataclasses.replace(w, scale=w.scale.to(scale_dtype))
            wide = dataclasses.replace(w, scale=low.scale.float())
            assert torch.equal(qk.lut_dequantize(low, backend=backend), qk.lut_dequantize(wide, backend=backend))
            for M in (1, 20, MOST_ROWS + 1):
                x = randn(M, 256).to("cuda", dtype)
                got, want = (qk.lut_linear(x, v, backend=backend) for v in (low, wide))
                assert torch.equal(got, want)


@pytest.mark.parametrize("backend", LUT)
@pytest.mark.parametrize("M", [1, 16, MOST_ROWS + 1])
def test_a_graph_of_a_packed_layer_replays(backend, M):
    """Also where K is split and parts are added, and where x is padded."""
    for N, K, P in ((33, 96, 99), (16, 16384, 16), (17, 709, 17)):
        w, x = make(N, K, P=P).to("cuda"), randn(M, K).to("cuda", torch.bfloat16)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch.no_grad():
            qk.lut_linear(x, w, backend=backend)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.no_grad():
            y = qk.lut_linear(x, w, backend=backend)
        x.copy_(randn(M, K, seed=3))
        graph.replay()
        assert torch.equal(y, qk.lut_linear(x, w, backend=backend))


@with_cuda
@pytest.mark.parametrize("wgmma", ["0", "1"])
def test_a_chain_of_kernels_that_start_early_has_the_same_bits(wgmma, monkeypatch):
    """Each reads what the one before it writes: with K in parts, with a padded x, with tens and hundreds of rows."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs Hopper")
    monkeypatch.setenv("QKERNELS_WGMMA", wgmma)
    weights = [make(N, K, P=P).to("cuda") for N, K, P in ((709, 4096, 709), (16384, 709, 16384), (4096, 16384, 4096))]
    for M in (1, 9, MOST_ROWS, 300):
        x, ends = randn(M, 4096).to("cuda", torch.bfloat16), []
        for early in ("0", "1", "1", "1"):
            monkeypatch.setenv("QKERNELS_PDL", early)
            y = x
            for w in weights * 4:
                y = qk.lut_linear(y, w, backend="cuda")
            ends.append(y)
        assert ends[0].isfinite().all() and ends[0].any() and all(torch.equal(y, ends[0]) for y in ends)


def packed_layers():
    """A linear layer and a convolution, packed, each with an input."""
    linear = qk.nn.LutLinear(torch.nn.Linear(96, 33), make(33, 96, P=99))
    w = make(33, 96 * 9, P=33)
    w = qk.LutWeight(w.codes, w.levels, w.scale, w.bits, w.group_size, (33, 96, 3, 3))
    return (linear, randn(5, 96)), (
        qk.nn.LutConv2d(torch.nn.Conv2d(96, 33, 3, padding=1), w),
        randn(5, 96 * 49).view(5, 96, 7, 7),
    )


@pytest.mark.parametrize("which", [0, 1], ids=["linear", "conv"])
@pytest.mark.parametrize("backend", LUT)
def test_a_cuda_graph_of_a_packed_layer_and_a_graph_exported_on_a_cpu(backend, which, monkeypatch):
    layer, x = packed_layers()[which]
    exported = torch.export.export(layer.eval(), (x,))
    monkeypatch.setenv("QKERNELS_BACKEND", backend)
    layer, x = layer.to("cuda"), x.to("cuda")
    with torch.no_grad():
        y = layer(x)
    torch.testing.assert_close(move_to_device_pass(exported, "cuda").module()(x), y, rtol=0, atol=0)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        layer(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        y = layer(x)
    x.mul_(2)
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(y, layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", LUT)
def test_gradients_in_16_bits_are_within_twice_the_error_of_plain_pytorch(backend, dtype):
    """Of x; and of levels and scales, whose sums are float32."""
    for M in (0, 3, 300):
        w = make(520, 96, P=520 * 3).to("cuda")
        w = qk.LutWeight(w.codes, w.levels.requires_grad_(), w.scale.requires_grad_(), 4, 32, (520, 96))
        x, g = randn(M, 96).to("cuda", dtype).requires_grad_(), randn(M, 520).to("cuda", dtype)
        dx, *table = torch.autograd.grad(qk.lut_linear(x, w, backend=backend), (x, w.levels, w.scale), g)
        wide = x.detach().float().requires_grad_()
        *_, levels, scale = torch.autograd.grad(
            F.linear(wide, qk.lut_dequantize(w)), (wide, w.levels, w.scale), g.float()
        )
        for got, want in zip(table, (levels, scale), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * (want.abs().max().item() + 1))
        if M:
            assert_twice_as_good(dx, g, w.dequantize().detach().T.contiguous(), None)


@pytest.mark.parametrize("backend", LUT)
def test_gradients_of_a_packed_layer(backend):
    w = make(75, 96, P=225, integers=True).to("cuda")
    x, bias, g = randint(3, 4, 96).cuda(), randint(75, seed=2).cuda(), randint(3, 4, 75, seed=5).cuda()
    grads = []
    for call in (lambda x, b: qk.lut_linear(x, w, b, backend=backend), lambda x, b: F.linear(x, w.dequantize(), b)):
        own = [x.clone().requires_grad_(), bias.clone().requires_grad_()]
        grads.append(torch.autograd.grad(call(*own), own, g))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])


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
