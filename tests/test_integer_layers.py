"""Packed linear layers that multiply the integers of their activations: quantizer and product in one call."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qkernels as qk
from qkernels import backends
from qkernels.nn import LutLinear
from qkernels.ops.lut_linear_int import op

from .isas import ALL
from .test_matmul import randn

pytestmark = pytest.mark.skipif("cpu" not in backends.backends_of("lut_linear_int"), reason="no compiled kernels")
PAIRS = [
    (qk.LSQ(bits=4, granularity="row"), qk.LSQ(bits=8)),
    (qk.CPQ(bits=4), qk.LSQ(bits=4, signed=False)),
    (qk.DAQ(bits=4), qk.LSQ(bits=1, signed=False)),
    (qk.ASQ(bits=4), qk.ASQ(bits=4)),
    (qk.POST(bits=4), qk.ASQ(bits=8, bound=1.0)),
    (qk.LSQ(bits=4, granularity=32), qk.LSQ(bits=3)),
    (qk.LSQ(bits=8, granularity="row"), qk.LSQ(bits=8)),
    (qk.CPQ(bits=8), qk.LSQ(bits=8, signed=False)),
    (qk.DAQ(bits=8), qk.ASQ(bits=8)),
    (qk.LSQ(bits=3), qk.LSQ(bits=8)),
    (qk.POST(bits=3, granularity=32), qk.LSQ(bits=8)),
    (qk.POST(bits=2), qk.LSQ(bits=8, signed=False)),
    (qk.DAQ(bits=1, granularity=32), qk.LSQ(bits=8)),
    (qk.DAQ(bits=4, granularity="row"), qk.DAQ(bits=4)),
    (qk.DAQ(bits=1), qk.DAQ(bits=1)),
    (qk.LSQ(bits=8, granularity="row"), qk.DAQ(bits=8, signed=False)),
    (qk.DAQ(bits=4, variant="scale"), qk.DAQ(bits=8, variant="scale")),
    (qk.POST(bits=4), qk.DAQ(bits=3, variant="scale", signed=False)),
]


@pytest.fixture(autouse=True)
def whatever_pays(monkeypatch):
    monkeypatch.setattr(op, "FEW_PRODUCTS", 0)
    monkeypatch.setattr(op, "pays", lambda *args: True)


def make(weight=PAIRS[0][0], activation=PAIRS[0][1], k: int = 96, n: int = 40) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, n), nn.ReLU(), nn.Linear(n, 8))
    qk.prepare_(model, [("0", (weight, activation))])
    qk.calibrate(model, randn(32, k))
    qk.convert_(model.eval())
    return model


@pytest.mark.parametrize(("weight", "activation"), PAIRS, ids=str)
def test_a_layer_gives_what_its_quantizer_and_its_weight_give(weight, activation, monkeypatch):
    model = make(weight, activation)
    layer = model[0]
    inputs = [randn(5, 96) * 3, randn(1, 96), randn(2, 3, 96)]
    with torch.no_grad():
        want = [layer(x) for x in inputs]
        assert qk.use_integers_(model) == ["0"] and "integers" in repr(layer)
        monkeypatch.setattr("qkernels.nn.lut.op.linear", None)  # it is not this one that runs
        for x, y in zip(inputs, want, strict=True):
            got = layer(x)
            assert got.shape == y.shape and got.dtype == torch.float32
            quantized, w = layer.activation_quantizer(x), layer.weight_lut.dequantize(torch.float64)
            truth = F.linear(quantized.double(), w, layer.bias.double())
            size = F.linear(quantized.double().abs(), w.abs())
            assert ((got - truth).abs() <= 2.0**-24 * (2 * size + 2 * truth.abs())).all()
            assert torch.equal(got, layer(x.clone()))
        monkeypatch.undo()
        qk.use_integers_(model, on=False)
        assert all(torch.equal(layer(x), y) for x, y in zip(inputs, want, strict=True))


def test_gradients_graphs_and_other_dtypes_go_on_as_before():
    model, plain, x = make(), make(), randn(5, 96)
    qk.use_integers_(model)
    y = model(x)
    assert torch.equal(y, plain(x)) and y.requires_grad  # the bias does
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()
    assert leaf.grad is not None and model[0].bias.grad is not None
    model[0].train_table()
    model(x).sum().backward()
    assert model[0].levels.grad is not None and model[0].scale.grad is not None
    with torch.no_grad():
        assert torch.equal(model[0].half()(x.half()), plain[0].half()(x.half()))
    torch._dynamo.reset()
    model, plain = make(), make()
    qk.use_integers_(model)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert model[0](x).dtype == torch.bfloat16 and torch.equal(model[0](x), plain[0](x))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), plain(x))
        exported = torch.export.export(model, (x,)).module()
        assert torch.equal(exported(x), plain(x))
        assert torch.equal(torch.func.vmap(model)(x[:, None]), torch.func.vmap(plain)(x[:, None]))


@pytest.mark.parametrize("activation", [PAIRS[0][1], qk.ASQ(bits=4), qk.DAQ(bits=4)], ids=str)
def test_each_reason_to_go_on_as_before(activation):
    """Alone: what else asks for gradients is frozen."""
    x = randn(5, 96)
    for trains in ("bias", "levels", "scale", "x", "activation", "adapter"):
        model, plain = make(activation=activation), make(activation=activation)
        qk.use_integers_(model)
        layer = model[0].train_table().requires_grad_(False)
        if trains in ("activation", "adapter"):
            quantizer = layer.activation_quantizer
            if trains == "adapter" and not hasattr(quantizer, "adapter"):
                continue
            parameter = getattr(quantizer, quantizer.config.parameters[-1])
            (parameter if trains == "activation" else quantizer.adapter[-1].weight).requires_grad_()
        elif trains != "x":
            getattr(layer, trains).requires_grad_()
        y = layer(x.clone().requires_grad_(trains == "x"))
        assert y.requires_grad and torch.equal(y, plain[0](x)), trains
        with torch.no_grad():
            assert not torch.equal(layer(x), plain[0](x))
    model, plain = make(activation=activation), make(activation=activation)
    qk.use_integers_(model)
    with torch.no_grad():
        assert torch.equal(torch.func.vmap(model)(x[:, None]), torch.func.vmap(plain)(x[:, None]))
        assert model[0](x.t().contiguous().t()).shape == (5, 40)
        assert torch.equal(model[0](x.t().contiguous().t()), model[0](x))
        assert model[0](x[:0]).shape == (0, 40) == plain[0](x[:0]).shape
        half, other = copy.deepcopy(model).half(), copy.deepcopy(plain).half()
        assert half(x.half()).dtype == torch.float16 and torch.equal(half(x.half()), other(x.half()))
        assert not torch.equal(model(x), plain(x))
        with model[0].activation_quantizer.register_forward_hook(lambda *_: None):
            assert torch.equal(model(x), plain(x))
        with torch.nn.modules.module.register_module_forward_pre_hook(lambda *_: None):
            assert torch.equal(model(x), plain(x))
        model[0].activation_quantizer.calibrated = plain[0].activation_quantizer.calibrated = False
        model[0].activation_quantizer.calibration.zero_(), plain[0].activation_quantizer.calibration.zero_()
        assert torch.equal(model(3 * x), plain(3 * x))  # calibrates
        assert not torch.equal(model(x), plain(x))
        model[0].activation_quantizer = nn.Identity()
        plain[0].activation_quantizer = None
        assert torch.equal(model(x), plain(x)) and qk.use_integers_(model, on=False) == [] and not model[0].integers


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "weight", [qk.LSQ(bits=4, granularity="row"), qk.LSQ(bits=8, granularity="row"), qk.POST(bits=4)]
)
def test_what_is_slower_in_integers_goes_on_as_before(weight, name, isa, monkeypatch):
    isa(name)
    monkeypatch.undo()
    monkeypatch.setattr(op, "FEW_PRODUCTS", 0)
    monkeypatch.setattr(op, "FEW_OF_A_ROW", 0)
    model, plain, x = make(weight), make(weight), randn(9, 96)
    qk.use_integers_(model)
    with torch.no_grad():
        kernels = torch.ops.qkernels_cpu.lut_linear_int_isa()
        pays = weight == qk.LSQ(bits=4, granularity="row") or kernels in ("amx", "avx512vnni")
        for rows in (x[:1], x[:8], x[:8].view(2, 4, 96)):
            assert torch.equal(model[0](rows), plain[0](rows)) == (not pays and kernels == "avx512"), rows.shape
        assert torch.equal(model[0](x), plain[0](x)) == (not pays)


def test_a_small_product_goes_on_as_before(monkeypatch):
    monkeypatch.setattr(op, "FEW_PRODUCTS", 5 * 96 * 40)
    model, plain, x = make(), make(), randn(5, 96)
    qk.use_integers_(model)
    with torch.no_grad():
        assert not torch.equal(model[0](x), plain[0](x))
        assert torch.equal(model[0](x[:4]), plain[0](x[:4]))
        monkeypatch.undo()
        monkeypatch.setattr(op, "FEW_PRODUCTS", 0)
        kernels = torch.ops.qkernels_cpu.lut_linear_int_isa()
        for most in (96 * 40, 96 * 40 + 1):  # products of one row
            monkeypatch.setattr(op, "FEW_OF_A_ROW", most)
            as_before = most > 96 * 40 and kernels in ("amx", "avx512vnni")
            assert torch.equal(model[0](x[:1]), plain[0](x[:1])) == as_before, most
            assert not torch.equal(model[0](x[:2]), plain[0](x[:2]))


def test_steps_can_be_frozen_afterwards():
    model, x = make(*PAIRS[3]), randn(5, 96)
    qk.use_integers_(model)
    qk.nn.freeze_steps_(model, [x])
    with torch.no_grad():
        truth = F.linear(model[0].activation_quantizer(x), model[0].weight_lut.dequantize(), model[0].bias)
        torch.testing.assert_close(model[0](x), truth, rtol=1e-5, atol=1e-5)


def test_a_nan_stays_in_its_row_and_a_changed_step_is_seen():
    model, x = make(), randn(5, 96)
    qk.use_integers_(model)
    layer = model[0]
    with torch.no_grad():
        before = layer(x)
        x[2, 7], x[3, 1] = float("nan"), float("inf")
        y = layer(x)
        assert y[2].isnan().all() and y[3].isfinite().all() and torch.equal(y[[0, 1, 4]], before[[0, 1, 4]])
        layer.activation_quantizer.step.mul_(1.5)
        after = layer(randn(5, 96))
        assert not torch.equal(after, before)
        truth = F.linear(layer.activation_quantizer(randn(5, 96)), layer.weight_lut.dequantize(), layer.bias)
        torch.testing.assert_close(after, truth, rtol=1e-5, atol=1e-5)
        assert layer(torch.zeros(0, 96)).shape == (0, 40)
        with pytest.raises(ValueError, match=r"x must have shape \[\.\.\., K=96\], got \[5, 95\]"):
            layer(randn(5, 95))


@pytest.mark.parametrize("signed", [True, False])
def test_changed_bounds_are_seen(signed):
    """Also where they cross, meet, or are not used, and a scale that is negative: as the quantizer takes them."""
    model, x = make(activation=qk.DAQ(bits=4, signed=signed)), randn(5, 96)
    qk.use_integers_(model)
    layer = model[0]
    quantizer = layer.activation_quantizer
    for name, value in (
        ("scale", 0.7),
        ("upper", 1.3),
        ("lower", 0.4),
        ("scale", -0.9),
        ("upper", -2.0),
        ("upper", 0.4),
    ):
        with torch.no_grad():
            before = layer(x)
            getattr(quantizer, name).fill_(value)
            after = layer(x)
            assert torch.equal(after, before) == (name == "lower" and not signed)
            truth = F.linear(quantizer(x), layer.weight_lut.dequantize(), layer.bias)
            torch.testing.assert_close(after, truth, rtol=1e-5, atol=1e-5)


def test_a_negative_step_counts_as_its_size():
    model, x = make(), randn(5, 96)
    qk.use_integers_(model)
    with torch.no_grad():
        before = model[0](x)
        model[0].activation_quantizer.step.neg_()
        assert torch.equal(model[0](x), before)


def test_what_changes_under_a_layer_is_seen():
    model, x = make(), randn(5, 96)
    layer = model[0]
    qk.use_integers_(model)
    layer.train_table(scale=False)
    with torch.no_grad():
        assert not torch.equal(layer(x), make()[0](x))  # still in integers
        layer.levels.mul_(1.01).add_(torch.linspace(0, 0.1, 16))
        truth = F.linear(layer.activation_quantizer(x), layer.weight_lut.dequantize(), layer.bias)
        torch.testing.assert_close(layer(x), truth, rtol=1e-5, atol=1e-5)
        layer.activation_quantizer = None
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight_lut.dequantize(), layer.bias))


def test_the_environment_is_obeyed_and_copies_keep_it(monkeypatch):
    model, x = make(), randn(5, 96)
    qk.use_integers_(model)
    with torch.no_grad():
        want = model(x)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert other[0].integers and torch.equal(other(x), want)
        calls = []
        monkeypatch.setattr(op, "_cpu", lambda *args: calls.append(1))
        monkeypatch.setenv("QKERNELS_BACKEND", "reference")
        assert torch.equal(model(x), want) and not calls


def test_files_do_not_store_it(tmp_path):
    model, x = make(), randn(5, 96)
    qk.use_integers_(model)
    qk.save_packed(model, tmp_path)
    loaded = nn.Sequential(nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    qk.load_packed(loaded, tmp_path)
    assert not loaded[0].integers and qk.use_integers_(loaded) == ["0"]
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    ("weight", "activation", "message"),
    [
        (qk.LSQ(bits=4), None, "the activation quantizer must be LSQ's, DAQ's or ASQ's, got None"),
        (qk.LSQ(bits=4), qk.CPQ(bits=4), "the activation quantizer must be LSQ's, DAQ's or ASQ's, got CPQ"),
        (qk.LSQ(bits=4), qk.DAQ(bits=8), "the integers of the activation quantizer must have at most 8 bits, got 9"),
        (qk.DQ(bits=4), qk.LSQ(bits=8), "levels must be 0 or"),
        (qk.DQ(bits=8), qk.LSQ(bits=8), "levels that are not evenly spaced must be at most 32, got 256"),
    ],
)
def test_other_layers_refuse_with_reason(weight, activation, message):
    model = make(weight, activation)
    assert qk.use_integers_(model) == [] and not model[0].integers
    with pytest.raises(ValueError, match=f"LutLinear.use_integers: .*{message}"):
        model[0].use_integers()
    assert isinstance(model[0].use_integers(False), LutLinear)
