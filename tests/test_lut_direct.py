"""The way to the CPU's kernel that leaves out torch's dispatcher: the same bits, and it gives way to who looks on."""

import dataclasses
import gc
import os
import sys
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import qkernels as qk
from qkernels import backends
from qkernels.ops.lut_linear import op
from qkernels.pack import PLANES, LutWeight
from qkernels.testing.others import packed_weight as make

from .isas import ALL

pytestmark = pytest.mark.skipif(
    "cpu" not in backends.backends_of("lut_linear") or not find_spec("qkernels._C"),
    reason="the compiled kernels are not built, or for another Python",
)
N, K = 48, 256


def direct(x: Tensor, w: LutWeight, bias: Tensor | None = None) -> Tensor | None:
    sizes = (w.bits, w.group_size, w.shape[0], w.shape[1], op._MANY_ROWS)
    return op._direct(x, w.codes, w.levels, w.scale, bias, *sizes)


def dispatched(x: Tensor, w: LutWeight, bias: Tensor | None = None) -> Tensor:
    rows = x.reshape(-1, w.shape[1])
    y = op._cpu_op(rows, w.codes, w.levels, w.scale, bias, w.bits, w.group_size, *w.shape)
    return y.reshape(*x.shape[:-1], w.shape[0])


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.fixture
def w() -> LutWeight:
    return make(N, K, bits=4, P=N * 2)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, K, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("dtype", backends.FLOATS)
@pytest.mark.parametrize("bits", PLANES)
def test_the_bits_are_those_of_the_op(bits, dtype, name, isa):
    isa(name)
    for integers in (False, True):
        w = make(N, K, bits=bits, P=N * 2, integers=integers)
        for M in (1, 2, 4, 5, 9, 33):
            x = torch.randn(M, K).to(dtype)
            x[M // 2, 3] *= 1e4  # a row that is not for integers
            for bias in (None, torch.randn(N), torch.randn(N).half(), torch.randn(N).bfloat16()):
                assert same(direct(x, w, bias), dispatched(x, w, bias))


@pytest.mark.parametrize("name", ALL)
def test_levels_and_rows_that_are_not_finite_too(name, isa, w):
    isa(name)
    inf = dataclasses.replace(w, levels=torch.tensor([torch.inf, -1.0, 0.5, 2.0] * 4))
    for x in (torch.randn(1, K), torch.randn(3, K), torch.full((2, K), torch.nan)):
        for weight in (w, inf):
            y = direct(x, weight)
            assert same(y, dispatched(x, weight)) and torch.equal(y.isnan(), dispatched(x, weight).isnan())


@pytest.mark.parametrize("shape", [(K,), (1, K), (1, 1, K), (2, 3, K), (1, 2, 1, 3, 1, 1, 1, K)])
def test_leading_dimensions_stay(shape, w):
    x = torch.randn(shape)
    assert same(direct(x, w), dispatched(x, w))
    assert torch.equal(direct(x, w), qk.lut_linear(x, w)) and torch.equal(
        qk.lut_linear(x, w), qk.lut_linear(x, w, backend="cpu")
    )


def test_the_result_is_a_tensor_like_any_other(x, w):
    y = direct(x, w)
    assert type(y) is Tensor and y.is_leaf and not y.requires_grad and not y.is_inference()
    y.resize_(5, 7)
    with torch.inference_mode():
        assert direct(x, w).is_inference()
    with torch.no_grad():
        assert direct(x.requires_grad_(), w).requires_grad is False
    assert direct(x, w) is None


def test_parameters_and_a_part_of_a_tensor_are_plain(w):
    all_x = torch.randn(5, K)
    assert same(direct(all_x[1:3], w), dispatched(all_x[1:3], w))
    assert same(direct(all_x[:, :K][2], w), dispatched(all_x[2], w))
    frozen = nn.Parameter(torch.randn(N), requires_grad=False)
    assert same(direct(all_x, w, frozen), dispatched(all_x, w, frozen))


class Loud(Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


def _refused() -> dict:
    x, bias = torch.randn(3, K), torch.randn(N)
    return {
        "a subclass": (x.as_subclass(Loud), {}, None),
        "no tensor": ([1.0] * K, {}, None),
        "another K": (torch.randn(3, K - 1), {}, None),
        "half of K": (torch.randn(6, K // 2), {}, None),
        "twice K": (torch.randn(3, 2 * K), {}, None),
        "no dimension": (torch.tensor(1.0), {}, None),
        "nine dimensions": (torch.randn(1, 1, 1, 1, 1, 1, 1, 1, K), {}, None),
        "no rows": (torch.randn(0, K), {}, None),
        "many rows": (torch.randn(op._MANY_ROWS, K), {}, None),
        "strides": (torch.randn(K, 3).T, {}, None),
        "float64": (x.double(), {}, None),
        "bytes": (x.byte(), {}, None),
        "integers": (x.long(), {}, None),
        "complex": (x.to(torch.complex64), {}, None),
        "meta": (x.to("meta"), {}, None),
        "sparse": (x.to_sparse(), {}, None),
        "zeros that are not there": (torch._efficientzerotensor(3, K), {}, None),
        "a negative view": (torch._neg_view(x), {}, None),
        "levels that are a negative view": (x, {"levels": torch._neg_view(torch.arange(16.0))}, None),
        "x that trains": (x.clone().requires_grad_(), {}, None),
        "levels that train": (x, {"levels": torch.arange(16.0).requires_grad_()}, None),
        "scale that trains": (x, {"scale": torch.ones(3, 2, 16).requires_grad_()}, None),
        "bias that trains": (x, {}, bias.clone().requires_grad_()),
        "bias of another size": (x, {}, torch.randn(N + 1)),
        "bias with another shape": (x, {}, bias[None]),
        "bias with strides": (x, {}, torch.randn(2 * N)[::2]),
        "bias of integers": (x, {}, bias.long()),
        "bias of bytes": (x, {}, bias.byte()),
        "bias in float64": (x, {}, bias.double()),
    }


@pytest.mark.parametrize("name", _refused())
def test_gives_way_to_what_is_not_plain(name, w):
    x, fields, bias = _refused()[name]
    assert direct(x, dataclasses.replace(w, **fields), bias) is None


def test_gives_way_to_sizes_that_do_not_fit(x, w):
    good = (w.codes, w.levels, w.scale, None, w.bits, w.group_size, N, K, 512)
    assert op._direct(x, *good) is not None
    bad = {
        0: (w.codes[:-512], w.levels),
        1: (w.codes, torch.arange(257.0), w.levels.half()),
        2: (w.scale[:1], w.scale[..., :8], w.codes),
        4: (3, 5, True, 4.0, 2**70, None),
        5: (0, -1, 48, 100),
        6: (0, -1, N + 16, 2**62),
        7: (0, -1, 2 * K, 2**62),
        8: (3, 0, -1, "512"),
    }
    for at, values in bad.items():
        for value in values:
            assert op._direct(x, *good[:at], value, *good[at + 1 :]) is None, (at, value)
    assert op._direct() is None and op._direct(x, *good, 1) is None


def test_a_negative_view_has_its_value(w):
    x = torch.randn(3, K)
    assert torch.equal(qk.lut_linear(torch._neg_view(x), w), qk.lut_linear(-x, w))


def test_gives_way_to_modes(x, w):
    seen = []

    class Ops(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    for mode in (Ops, Functions):
        seen.clear()
        with mode():
            assert direct(x, w) is None
            y = qk.lut_linear(x, w)
        assert any("lut_linear" in name for name in seen) and torch.equal(y, direct(x, w))


def test_gives_way_to_a_profiler(x, w):
    with torch.profiler.profile(acc_events=True) as profile:
        assert direct(x, w) is None
        qk.lut_linear(x, w)
    assert any("lut_linear" in event.name for event in profile.events())
    assert direct(x, w) is not None


def test_other_observers_see_it(x, w, tmp_path):
    observer = torch.profiler.ExecutionTraceObserver().register_callback(str(tmp_path / "trace.json"))
    observer.start()
    assert direct(x, w) is not None
    observer.stop()
    observer.unregister_callback()
    assert "qkernels_cpu::lut_linear" in (tmp_path / "trace.json").read_text()


def test_gives_way_to_a_trace(w):
    x, other = torch.randn(1, K), torch.randn(1, K)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sizes are constants in a trace
        traced = torch.jit.trace(lambda x: qk.lut_linear(x, w) + 1, (x,))
    assert torch.equal(traced(other), qk.lut_linear(other, w) + 1)


def test_gives_way_to_torch_func_and_to_derivatives(w):
    x, t = torch.randn(3, K), torch.randn(3, K)
    assert torch.equal(
        torch.vmap(lambda row: qk.lut_linear(row, w))(x[:, None])[:, 0], torch.cat([direct(r, w) for r in x[:, None]])
    )
    g = torch.func.grad(lambda x: qk.lut_linear(x, w).sum())(x)
    leaf = x.clone().requires_grad_()
    qk.lut_linear(leaf, w).sum().backward()
    assert g.abs().sum() > 0 and torch.equal(leaf.grad, g)
    with forward_ad.dual_level():
        assert direct(forward_ad.make_dual(x, t), w) is None
        assert direct(x, w) is None


def test_gives_way_to_autocast_and_the_environment(w, monkeypatch):
    x = torch.randn(3, K)
    with torch.autocast("cpu", torch.bfloat16):
        assert direct(x, w) is None and qk.lut_linear(x, w).dtype == torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert direct(x, w) is not None
    monkeypatch.setenv("QKERNELS_BACKEND", "reference")
    assert direct(x, w) is None
    monkeypatch.delenv("QKERNELS_BACKEND")
    assert direct(x, w) is not None
    monkeypatch.setattr(os, "environ", {"QKERNELS_BACKEND": "reference"})
    assert direct(x, w) is None


def test_what_an_object_calls_its_own_is_not_asked(x, w):
    y = direct(x, w)
    x.new_empty = x.is_neg = lambda *args: 1 / 0
    assert torch.equal(direct(x, w), y)


@pytest.mark.parametrize("name", ALL)
def test_float16_keeps_its_small_values_where_the_processor_does_not(name, isa, w):
    """Below 2**-14 they are denormal in float16 only. bfloat16's are so in float32 too."""
    isa(name)
    x, bias = torch.full((4, K), 3e-5).half(), torch.full((N,), 3e-5).half()
    want = [qk.lut_linear(x[:M].float(), w, bias.float(), backend="reference") for M in (1, 2, 4)]
    torch.set_flush_denormal(True)
    try:
        for M, value in zip((1, 2, 4), want, strict=True):
            assert torch.allclose(direct(x[:M], w, bias).float(), value, rtol=1e-3, atol=1e-7)
            assert torch.equal(direct(x[:M], w, bias), dispatched(x[:M], w, bias))
    finally:
        torch.set_flush_denormal(False)


def test_without_it_all_is_the_same(x, w, monkeypatch):
    y = qk.lut_linear(x, w)
    monkeypatch.setattr(op, "_direct", backends.direct("another_op"))
    assert direct(x, w) is None
    assert torch.equal(qk.lut_linear(x, w), y)


def test_nothing_is_kept(w):
    """No count of references changes: of what is passed and returned, and where it gives way."""
    x, bias, size = torch.randn(1, 300, K), torch.randn(N), int("48")
    args = (x, w.codes, w.levels, w.scale, bias, w.bits, w.group_size, size, K, 512)

    def counts() -> list[int]:
        gc.collect()
        tensors = sum(type(o) is Tensor for o in gc.get_objects())
        return [
            *(sys.getrefcount(o) for o in (*args[:5], None, False)),
            tensors,
            tracemalloc.get_traced_memory()[0] // 16,
        ]

    def calls(count: int) -> None:
        for _ in range(count):
            assert op._direct(*args) is not None
            assert op._direct(x.double(), *args[1:]) is None
            assert op._direct(*args[:4], bias[:-1], *args[5:]) is None

    def changes() -> list[int]:
        before = counts()
        calls(300)
        return [a - b for a, b in zip(counts(), before, strict=True)]

    calls(3)
    tracemalloc.start()
    tries = [changes() for _ in range(3)]  # None and memory are also someone else's
    tracemalloc.stop()
    assert all(min(abs(change) for change in each) < 250 for each in zip(*tries, strict=True)), tries
    assert all(change == 0 for each in tries for change in each[:5]), tries


def test_threads_may_call_at_once(w):
    xs = [torch.randn(1 + i % 3, K) for i in range(8)]
    want = [dispatched(x, w) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            assert all(torch.equal(a, b) for a, b in zip(pool.map(lambda x: direct(x, w), xs), want, strict=True))


def test_memory_that_is_not_written_would_be_seen(w):
    """What the kernel writes to is torch's own new_empty, which tests fill with NaN."""
    assert torch.randn(1, K).new_empty(1, N).isnan().all()
    assert not direct(torch.randn(1, K), w).isnan().any()
