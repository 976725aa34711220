"""Gradients of a packed weight's table, levels and scale, and what trains on top of packed weights."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import qkernels as qk
from qkernels import backends
from qkernels.nn import LutConv2d, LutLinear
from qkernels.ops.lut_linear import op
from qkernels.pack import PLANES, LutWeight

from .test_matmul import DTYPES, make, randint, randn

SHAPES = [(40, 96, 120), (17, 257, 17), (33, 64, 1), (16, 128, 32)]  # N, K, scales


def trained(w: LutWeight, levels: bool = True, scale: bool = True) -> LutWeight:
    """w with a table of its own that requires grad."""
    parts = {"levels": w.levels.detach().clone(), "scale": w.scale.detach().clone()}
    parts["levels"].requires_grad_(levels)
    parts["scale"].requires_grad_(scale)
    return dataclasses.replace(w, **parts)


def dense(w: LutWeight, levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """``levels[codes] * scale`` as plain PyTorch."""
    N, K = w.unpack().flatten(1).shape
    by_row = scale.transpose(1, 2).flatten(0, 1)[:N]  # [N, G]
    return (levels[w.unpack().long()].view(N, by_row.shape[1], -1) * by_row[:, :, None]).view(w.shape)


def autograd(w: LutWeight, x: torch.Tensor, g: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """d levels, d scale of plain PyTorch in ``dtype``."""
    table = [t.detach().to(dtype).requires_grad_() for t in (w.levels, w.scale)]
    return torch.autograd.grad(F.linear(x.to(dtype), dense(w, *table)), table, g.to(dtype))


def gradients(w: LutWeight, x: torch.Tensor, g: torch.Tensor, **options) -> tuple[torch.Tensor, ...]:
    w = trained(w)
    return torch.autograd.grad(qk.lut_linear(x, w, **options), (w.levels, w.scale), g)


@pytest.fixture
def small_chunks(monkeypatch):
    """Two stripes of 96 columns at a time: several parts of the weight and a remainder."""
    monkeypatch.setattr(op, "_CHUNK", 4 * 16 * 96 * 2)


@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_table_gets_the_gradients_of_autograd(bits, dtype, small_chunks):
    """Within what M products in float32 and two roundings may lose; sums over the weight lose nothing."""
    M = 7
    for N, K, P in SHAPES:
        w, x, g = make(N, K, bits=bits, P=P), randn(M, K).to(dtype), randn(M, N, seed=2).to(dtype)
        truth = autograd(w, x, g, torch.float64)
        positive = dataclasses.replace(w, levels=w.levels.abs())
        sizes = autograd(positive, x.abs(), g.abs(), torch.float64)  # the sums of the sizes
        for got, want, size in zip(gradients(w, x, g), truth, sizes, strict=True):
            assert got.dtype == torch.float32 and got.shape == want.shape
            assert ((got - want).abs() <= (M + 3) * 2.0**-24 * size).all()


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_integers_give_the_exact_table_gradient(bits, backend, small_chunks):
    for N, K, P in SHAPES:
        w, x, g = make(N, K, bits=bits, P=P, integers=True), randint(2, 3, K), randint(2, 3, N, seed=2)
        truth = autograd(w, x, g, torch.float64)
        assert all(map(torch.equal, gradients(w, x, g, backend=backend), (t.float() for t in truth)))
        wide = gradients(w, x.double(), g.double(), backend=backend)  # float64: on the reference
        assert all(map(torch.equal, wide, (t.float() for t in truth)))


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16])
def test_a_low_precision_scale_gets_a_gradient_of_its_dtype(scale_dtype):
    codes = torch.randint(0, 16, (20, 64))
    w = LutWeight.pack(codes, torch.randn(16), torch.rand(40) + 0.1, bits=4, scale_dtype=scale_dtype)
    x, g = randn(3, 64), randn(3, 20, seed=2)
    d_levels, d_scale = gradients(w, x, g)
    truth = autograd(w, x, g, torch.float64)
    assert d_scale.dtype == scale_dtype and d_levels.dtype == torch.float32
    torch.testing.assert_close(d_scale, truth[1].to(scale_dtype))
    torch.testing.assert_close(d_levels, truth[0].float())


@pytest.mark.parametrize(("levels", "scale"), [(True, False), (False, True)])
def test_only_what_requires_grad_is_computed(levels, scale, monkeypatch):
    asked = []
    whole = op._linear_bwd
    monkeypatch.setattr(op, "_linear_bwd", lambda *args: asked.append(args[-3:-1]) or whole(*args))
    w, x = trained(make(40, 96, P=120), levels, scale), randn(5, 96)
    qk.lut_linear(x, w).square().sum().backward()
    assert asked == [(levels, scale)]
    assert (w.levels.grad is not None, w.scale.grad is not None) == (levels, scale)
    other = trained(w)
    qk.lut_linear(x, other).square().sum().backward()
    for one, both in ((w.levels, other.levels), (w.scale, other.scale)):
        assert one.grad is None or torch.equal(one.grad, both.grad)


def test_x_is_saved_for_the_table_only():
    x = randn(5, 96)
    for w, more in ((make(40, 96), 0), (trained(make(40, 96)), x.nbytes)):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # noqa: B023
            qk.lut_linear(x.requires_grad_(), w)
        assert sum(t.nbytes for t in saved) == w.nbytes + more


class Largest(TorchDispatchMode):
    """The most bytes of a tensor made inside, in our ops too."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "qkernels":
            with self:
                return backends._OPS[func._opname][args[-1]](*args[:-1])
        out = func(*args, **(kwargs or {}))
        there = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        made = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.nbytes = max([self.nbytes, *(s.nbytes() for s in made if s.data_ptr() not in there)])
        return out


def test_the_table_gradient_never_holds_the_whole_weight(monkeypatch):
    monkeypatch.setattr(op, "_CHUNK", 4 * 16 * 64)
    w, x = trained(make(512, 64, P=512)), randn(2, 64)
    loss = qk.lut_linear(x, w).square().sum()
    with Largest() as largest:
        loss.backward()
    assert w.levels.grad is not None
    assert largest.nbytes == 16 * 64 * 8  # 16 rows as float64; all of W takes 32 times that


def test_the_table_gradient_is_deterministic():
    w, x, g = make(80, 192, bits=8, P=480), randn(33, 192), randn(33, 80, seed=2)
    want = gradients(w, x, g)
    for _ in range(3):
        assert all(map(torch.equal, gradients(w, x, g), want))


@pytest.mark.parametrize("bits", [2, 8])
def test_a_nan_stays_with_its_scale_and_its_codes(bits):
    w, x, g = make(20, 96, bits=bits, P=60), randn(3, 96), randn(3, 20, seed=2)
    g[1, 7] = torch.nan
    d_levels, d_scale = gradients(w, x, g)
    by_row = d_scale.transpose(1, 2).flatten(0, 1)
    assert by_row[7].isnan().all() and by_row.isnan().sum() == by_row[7].numel()
    assert torch.equal(d_levels.isnan(), torch.bincount(w.unpack()[7], minlength=2**bits) > 0)


def test_the_sums_of_a_gpu_are_those_of_a_cpu():
    class Elsewhere(torch.Tensor):
        device = property(lambda self: torch.device("cuda"))

    values, codes = randint(1000), torch.randint(0, 11, (1000,), dtype=torch.uint8)
    values[3] = torch.nan
    got = op._sum_by_code(values.as_subclass(Elsewhere), codes, 13).as_subclass(torch.Tensor)
    assert got.dtype == torch.float64
    assert torch.equal(got.nan_to_num(), op._sum_by_code(values, codes, 13).nan_to_num())
    assert got.isnan().nonzero().tolist() == [[codes[3]]]


@pytest.mark.parametrize("bits", tuple(PLANES))
def test_dequantize_and_conv2d_pass_gradients_to_the_table(bits):
    w = trained(make(6, 4, 3, 3, bits=bits, P=6, integers=True))
    table, g, x = (w.levels, w.scale), randint(6, 4, 3, 3), randint(2, 4, 5, 5, seed=3)
    wide = [t.detach().double().requires_grad_() for t in table]
    want = torch.autograd.grad(dense(w, *wide), wide, g.double())
    for dtype in DTYPES:
        got = torch.autograd.grad(qk.lut_dequantize(w, dtype), table, g.to(dtype))
        assert all(map(torch.equal, got, (t.float() for t in want)))
    got = torch.autograd.grad(qk.lut_conv2d(x, w, padding=1).sum(), table)
    want = torch.autograd.grad(F.conv2d(x.double(), dense(w, *wide), padding=1).sum(), wide)
    assert all(map(torch.equal, got, (t.float() for t in want)))


def test_a_1x1_convolution_passes_gradients_to_the_table():
    w, x = trained(make(272, 256, 1, 1, P=272, integers=True)), randint(2, 256, 4, 8)
    wide = [t.detach().double().requires_grad_() for t in (w.levels, w.scale)]
    got = torch.autograd.grad(qk.lut_conv2d(x, w).sum(), (w.levels, w.scale))
    want = torch.autograd.grad(F.conv2d(x.double(), dense(w, *wide)).sum(), wide)
    assert all(map(torch.equal, got, (t.float() for t in want)))


@pytest.mark.parametrize("bits", tuple(PLANES))
def test_opcheck(bits):
    w, tests = make(24, 96, bits=bits, P=72), ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    rest = (w.codes, w.levels, w.scale, bits, 32, 24, 96)
    for flags in ((True, True), (True, False), (False, True)):
        args = (randn(3, 24), randn(3, 96), *rest, *flags, "auto")
        torch.library.opcheck(torch.ops.qkernels.lut_linear_bwd.default, args, test_utils=tests)
        args = (randn(24, 96), *rest, *flags, "auto")
        torch.library.opcheck(torch.ops.qkernels.lut_dequantize_bwd.default, args, test_utils=tests)


def test_it_compiles_whole_and_goes_through_torch_func():
    w, x = make(24, 64, P=48), randn(5, 64)

    def loss(levels, scale):
        own = dataclasses.replace(w, levels=levels, scale=scale)
        return qk.lut_linear(x, own).square().sum() + qk.lut_dequantize(own).square().sum()

    table = (w.levels.clone().requires_grad_(), w.scale.clone().requires_grad_())
    want = torch.autograd.grad(loss(*table), table)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, torch.autograd.grad(compiled(*table), table), want))
    assert all(map(torch.equal, torch.func.grad(loss, argnums=(0, 1))(w.levels, w.scale), want))


# layers


def packed(n: int = 20, k: int = 64) -> LutLinear:
    torch.manual_seed(0)
    layer = qk.nn.QuantLinear(nn.Linear(k, n), weight=qk.LSQ(bits=3, granularity=32))
    return LutLinear.from_quant(layer)


def test_gradients_of_each_sample_are_those_of_one_alone():
    """vmap over grad, where a warning of a missing batching rule would be an error."""
    w, xs = make(20, 64, P=20), randn(3, 2, 64)
    gradient = torch.func.grad(lambda x: qk.lut_linear(x, w).square().sum())
    each = torch.stack([gradient(x) for x in xs])
    torch.testing.assert_close(torch.func.vmap(gradient)(xs), each)


def test_a_layers_table_trains_and_its_codes_stay():
    """Levels and scales fitted to a weight that they were not made for; rows of the padding stay 0."""
    model = nn.Sequential(packed()).train()
    layer, x = model[0], randn(64, 64)
    codes, grid, target = layer.codes.clone(), layer.weight_lut.levels.clone(), randn(20, 64, seed=3) * 0.02
    target += layer.weight_lut.dequantize() * 1.3 + 0.05 * layer.weight_lut.dequantize().sign()
    kept = layer.weight_lut
    assert layer.train_table() is layer
    groups = qk.param_groups(model, lr=0.02, quantizer_lr=0.02, weight_decay=0.1)
    assert [p.shape for p in groups[1]["params"]] == [layer.levels.shape, layer.scale.shape]
    optimizer = torch.optim.AdamW(groups)
    losses = []
    for _ in range(150):
        loss = F.mse_loss(model(x), F.linear(x, target, layer.bias.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(layer.codes, codes) and torch.equal(kept.levels, grid), "the weight it was made of is as it was"
    assert not layer.scale.detach().transpose(1, 2).flatten(0, 1)[20:].any()
    y = qk.lut_linear(x, layer.weight_lut, layer.bias)
    torch.testing.assert_close(y, F.linear(x, layer.weight_lut.dequantize(), layer.bias))


def test_a_trained_table_is_saved_and_loaded(tmp_path):
    model = nn.Sequential(packed(32), nn.ReLU(), packed(10, 32))
    model[0].train_table()
    with torch.no_grad():
        model[0].levels.add_(0.01)
        model[0].scale.mul_(1.1)
    x = randn(5, 64)
    qk.save_packed(model, tmp_path)
    fresh = qk.load_packed(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), tmp_path)
    assert torch.equal(fresh(x), model(x))
    other = nn.Sequential(packed(32), nn.ReLU(), packed(10, 32))
    assert list(other.state_dict()) != [] and set(other.state_dict()) == set(model.state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_a_table_that_trains_keeps_its_dtypes_and_gradients_under_casts():
    layer = packed()
    layer.train_table()
    layer(randn(3, 64)).sum().backward()
    want = layer.weight_lut.dequantize().detach()
    grads = layer.levels.grad.clone(), layer.scale.grad.clone()
    for cast in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.float()):
        cast(layer)
        assert torch.equal(layer.weight_lut.dequantize(), want) and isinstance(layer.levels, nn.Parameter)
        assert torch.equal(layer.levels.grad, grads[0]) and torch.equal(layer.scale.grad, grads[1])
    assert layer.bias.dtype == torch.float32


def test_what_trains_is_chosen_and_can_be_taken_back():
    layer, x = packed(), randn(3, 64)
    y = layer(x)
    for levels, scale in ((True, False), (True, True), (False, True), (False, False)):
        layer.train_table(levels=levels, scale=scale)
        names = {name for name, _ in layer.named_parameters()}
        assert names == {"bias"} | ({"levels"} if levels else set()) | ({"scale"} if scale else set())
        assert {"codes", "levels", "scale"} <= set(layer.state_dict())
        assert ("trains" in repr(layer)) == (levels or scale)
        assert torch.equal(layer(x), y) and not layer.codes.requires_grad
    assert "trains levels and scale" in repr(layer.train_table())


def test_a_frozen_table_trains_again():
    layer = packed().train_table()
    layer.requires_grad_(False)
    layer.train_table(levels=True, scale=False)
    assert layer.levels.requires_grad and not layer.scale.requires_grad


def test_a_table_that_diverged_is_not_saved(tmp_path):
    model = nn.Sequential(packed().train_table())
    with torch.no_grad():
        model[0].levels[1] = torch.nan
    with pytest.raises(ValueError, match="save_packed: layer '0': LutWeight: levels must be finite"):
        qk.save_packed(model, tmp_path)


def test_a_convolutions_table_trains_too():
    torch.manual_seed(0)
    quant = qk.nn.QuantConv2d(nn.Conv2d(4, 6, 3), weight=qk.POST(bits=4))
    layer = LutConv2d.from_quant(quant).train_table(levels=False)
    layer(randn(2, 4, 5, 5)).sum().backward()
    assert layer.scale.grad.abs().sum() > 0 and "trains scale" in repr(layer)
