"""The modules: they compute what the functions compute, train, and survive what people do to modules."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

import qkernels as qk
from qkernels import methods
from qkernels.nn import LutConv2d, LutLinear, QuantConv2d, Quantizer, QuantLinear, quantizers

METHODS = tuple(methods.METHODS.values())
ONE_STEP = (qk.LSQ, qk.POST)  # one parameter a block, which is the unit of the grid
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATION = qk.LSQ(bits=4)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(config=None, activation=None, n: int = 24, k: int = 64, dtype: torch.dtype = torch.float32) -> QuantLinear:
    torch.manual_seed(0)
    layer = nn.Linear(k, n).to(dtype)
    return QuantLinear.from_float(layer, weight=config or qk.LSQ(bits=4, granularity="row"), activation=activation)


def net(activation=ACTIVATION) -> nn.Sequential:
    """Two quantized layers, the second of which sees no negative value; its activation quantizers are calibrated."""
    model = nn.Sequential(linear(activation=activation), nn.ReLU(), linear(qk.POST(bits=3), activation, n=10, k=24))
    model(randn(8, 64, seed=1))
    return model


def converted() -> nn.Sequential:
    model = net()
    qk.convert_(model)
    return model


def grads(model: nn.Module, call, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    call(x).float().square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


# what the layers compute


@pytest.mark.parametrize("method", ONE_STEP)
@pytest.mark.parametrize("granularity", ["tensor", "row", 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_quantized_linear_layer_is_linear_on_the_quantized_weight(method, granularity, dtype):
    config = method(bits=4, granularity=granularity)
    layer = linear(config, dtype=dtype)
    x = randn(5, 64).to(dtype)
    P = {"tensor": 1, "row": 24, 32: 48}[granularity]
    parameters = list(layer.weight_quantizer.parameters())
    for parameter in parameters:
        assert parameter.shape == (P,) and parameter.dtype == dtype and (parameter > 0).all()
    function = {qk.LSQ: qk.lsq, qk.POST: qk.post, qk.CPQ: qk.cpq}[method]
    weight = function(layer.weight, *parameters, bits=4)
    assert torch.equal(layer(x), F.linear(x, weight, layer.bias))


def test_an_activation_quantizer_is_the_function_too():
    layer = linear(activation=qk.LSQ(bits=3))
    x = randn(5, 64)
    layer(x)
    (step,) = layer.activation_quantizer.parameters()
    want = F.linear(qk.lsq(x, step, bits=3), layer.weight_quantizer(layer.weight), layer.bias)
    assert torch.equal(layer(x), want)


@pytest.mark.parametrize(("bits", "signed"), [(4, True), (2, True), (3, False), (1, False)])
def test_the_gradient_of_a_step_has_the_papers_factor(bits, signed):
    """1 / sqrt(L * qmax); of activations, L counts one sample, so that the batch size does not matter."""
    w, qmax = randn(6, 32), 2 ** (bits - signed) - 1
    config = qk.LSQ(bits=bits, signed=signed, granularity="row")
    for scaled in (True, False):
        step = torch.full((6,), 0.3, requires_grad=True)
        dataclasses.replace(config, grad_scale=scaled).quantize(w, step).sum().backward()
        own = step.detach().clone().requires_grad_()
        qk.lsq(w, own, bits=bits, signed=signed).sum().backward()
        torch.testing.assert_close(step.grad, own.grad * ((32 * qmax) ** -0.5 if scaled else 1))
    quantizer = Quantizer(qk.LSQ(bits=bits, signed=signed))
    quantizer.calibrate(w)
    quantizer(w).sum().backward()
    own = quantizer.step.detach().clone().requires_grad_()
    qk.lsq(w, own, bits=bits, signed=signed).sum().backward()
    torch.testing.assert_close(quantizer.step.grad, own.grad * (32 * qmax) ** -0.5)


def test_the_gradient_of_a_post_scale_has_the_releases_factor():
    w = randn(6, 32)
    for scaled, clip in ((True, True), (False, False)):
        scale = torch.full((6,), 1.0, requires_grad=True)
        weight = w.clone().requires_grad_()
        qk.POST(bits=4, grad_scale=scaled, clip_grad=clip).quantize(weight, scale).sum().backward()
        own = scale.detach().clone().requires_grad_()
        qk.post(w, own, bits=4).sum().backward()
        torch.testing.assert_close(scale.grad, own.grad * (32**-0.5 if scaled else 1))
        assert torch.equal(weight.grad, ((w.abs() <= 1) | (not clip)).float())


CONVS = [
    dict(),
    dict(stride=2, padding=1, bias=False),
    dict(padding="same", dilation=2),
    dict(groups=2, padding=(1, 0)),
    dict(padding=1, padding_mode="circular"),
    dict(padding=(2, 1), padding_mode="reflect", stride=2),
    dict(padding="same", padding_mode="replicate", dilation=2),
]


@pytest.mark.parametrize("options", CONVS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_conv2d_honors_every_option_and_packs_to_the_same_bits(options, dtype):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **options).to(dtype)
    plain = copy.deepcopy(layer)
    quant = QuantConv2d.from_float(layer, weight=qk.POST(bits=4), activation=qk.LSQ(bits=8))
    x = randn(2, 4, 9, 8).to(dtype)
    y = quant(x)
    plain.weight.data = quant.weight_quantizer(quant.weight).detach()
    assert torch.equal(y, plain(quant.activation_quantizer(x)))
    packed = LutConv2d.from_quant(quant)
    assert packed.weight_lut.shape == layer.weight.shape
    assert torch.equal(packed(x), y)


def test_conv2d_takes_groups_and_channels_last():
    torch.manual_seed(0)
    layer = nn.Conv2d(32, 8, 3).to(memory_format=torch.channels_last)
    for granularity, P in (("tensor", 1), ("row", 8), (32, 72)):
        quant = QuantConv2d.from_float(layer, weight=qk.LSQ(bits=3, granularity=granularity))
        assert quant.weight_quantizer.step.shape == (P,)
        packed = LutConv2d.from_quant(quant)
        assert torch.equal(packed.weight_lut.dequantize(), quant.weight_quantizer(quant.weight).contiguous())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_packed_weight_is_the_trained_weight_to_the_bit(method, bits, dtype):
    layer = linear(method(bits=bits, granularity=32), dtype=dtype)
    with torch.no_grad():
        for p in layer.weight_quantizer.parameters():
            p.mul_(torch.rand_like(p) + 0.5)
        layer.weight[0, 0] = -0.0
    packed = LutLinear.from_quant(layer)
    weight = layer.weight_quantizer(layer.weight).detach()
    got = packed.weight_lut.dequantize(dtype)
    assert torch.equal(got, weight) and torch.equal(got.signbit(), weight.signbit())
    if dtype == torch.float32:
        x = randn(5, 64)
        assert torch.equal(qk.lut_linear(x, packed.weight_lut, packed.bias, backend="reference"), layer(x))


@pytest.mark.parametrize(
    ("grid", "bits", "stored"), [("release", 2, 3), ("release", 3, 4), ("release", 4, 8), ("nozero", 1, 1)]
)
def test_more_levels_than_bits_hold_are_stored_one_width_up(grid, bits, stored):
    packed = LutLinear.from_quant(linear(qk.POST(bits=bits, grid=grid)))
    assert packed.bits == stored and packed.levels.numel() == 2**bits + (grid == "release")


# what people do to modules


def test_a_quantized_layer_is_the_torch_layer_with_the_same_tensors_and_keys():
    layer = nn.Linear(64, 24).eval()
    calls = []
    handle = layer.register_forward_hook(lambda *_: calls.append(1))
    quant = QuantLinear.from_float(layer, weight=qk.LSQ(bits=4), activation=qk.LSQ(bits=4))
    assert isinstance(quant, nn.Linear) and quant.weight is layer.weight and quant.bias is layer.bias
    assert type(layer) is nn.Linear and "weight_quantizer" not in dict(layer.named_children())
    assert not quant.training and not quant.weight_quantizer.training
    quant(randn(2, 64))
    handle.remove()
    quant(randn(2, 64))
    assert len(calls) == 1, "hooks come along and can be removed"
    assert set(quant.state_dict()) == {
        "weight",
        "bias",
        "weight_quantizer.step",
        "weight_quantizer.calibration",
        "activation_quantizer.step",
        "activation_quantizer.calibration",
    }
    assert all(p.dim() >= 1 for p in quant.parameters()), "FSDP2 refuses 0-D parameters"
    conv = QuantConv2d.from_float(nn.Conv2d(3, 4, 3), weight=qk.POST(bits=4))
    assert isinstance(conv, nn.Conv2d) and {"weight", "bias"} <= set(conv.state_dict())


def test_repr_tells_method_bits_and_state():
    assert "LSQ(bits=4, row), P=24" in repr(linear())
    assert "LSQ(bits=4, groups of 32), P=48" in repr(linear(qk.LSQ(bits=4, granularity=32)))
    layer = linear(qk.POST(bits=3, grid="nozero"), qk.LSQ(bits=2))
    assert "POST(bits=3, row, grid=nozero)" in repr(layer) and "LSQ(bits=2, tensor), P=1, new" in repr(layer)
    layer(randn(2, 64).relu())
    assert "LSQ(bits=2, unsigned, tensor), P=1)" in repr(layer)
    packed = repr(LutLinear.from_quant(layer))
    assert "in_features=64, out_features=24, bias=True, POST(bits=3, row, grid=nozero), " in packed
    assert f"{LutLinear.from_quant(layer).weight_lut.bits_per_weight:.2f} bits/weight" in packed


@pytest.mark.parametrize("make", [net, converted])
def test_deepcopy_and_pickle_give_independent_equal_models(make):
    model, x = make(), randn(3, 64)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x)) and repr(twin) == repr(model)
        for a, b in zip(twin.state_dict().values(), model.state_dict().values(), strict=True):
            assert a.data_ptr() != b.data_ptr()


def save_torch(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def save_safetensors(state: dict) -> dict:
    return load(save({name: tensor.contiguous() for name, tensor in state.items()}))


@pytest.mark.parametrize("through", [save_torch, save_safetensors])
@pytest.mark.parametrize("assign", [False, True])
def test_calibration_and_sign_survive_a_state_dict(through, assign):
    model, x = net(), randn(3, 64, seed=2)
    fresh = nn.Sequential(linear(activation=ACTIVATION), nn.ReLU(), linear(qk.POST(bits=3), ACTIVATION, n=10, k=24))
    fresh.load_state_dict(through(model.state_dict()), assign=assign)
    assert [q.config for _, q in quantizers(fresh)] == [q.config for _, q in quantizers(model)]
    assert all(q.calibrated for _, q in quantizers(fresh))
    assert torch.equal(torch.compile(fresh, fullgraph=True, backend="eager")(x), model(x))


def test_the_state_before_calibration_survives_too():
    model = net()
    state = linear(activation=ACTIVATION).state_dict()
    model[0].load_state_dict(state)
    quantizer = model[0].activation_quantizer
    assert not quantizer.calibrated and quantizer.config.signed is None
    model(randn(3, 64).relu())
    assert quantizer.config.signed is False


def test_a_state_loaded_in_place_is_seen():
    """As torch.distributed.checkpoint does: into the tensors, without load_state_dict."""
    model, fresh = linear(activation=ACTIVATION), linear(activation=ACTIVATION)
    x = randn(3, 64).relu()
    model(x)
    with torch.no_grad():
        for name, tensor in fresh.state_dict().items():
            tensor.copy_(model.state_dict()[name])
    assert torch.equal(fresh(10 * x), model(10 * x)) and fresh.activation_quantizer.config.signed is False


def test_a_state_of_another_sign_is_refused():
    model, fresh = linear(activation=ACTIVATION), linear(activation=qk.LSQ(bits=4, signed=True))
    model(randn(3, 64).relu())
    with pytest.raises(RuntimeError, match="activation_quantizer: the grid must be signed=True .* got signed=False"):
        fresh.load_state_dict(model.state_dict())
    for value, message in (
        ([7], "calibration must be 0, 1 or 2, got 7"),
        ([1, 1], "size mismatch for activation_quan"),
    ):
        state = model.state_dict() | {"activation_quantizer.calibration": torch.tensor(value, dtype=torch.uint8)}
        with pytest.raises(RuntimeError, match=message):
            fresh.load_state_dict(state)
    fresh.activation_quantizer.calibration.fill_(1)  # in place
    with pytest.raises(ValueError, match="LSQ: the grid must be signed=True"):
        fresh(randn(3, 64))


def test_a_packed_layer_keeps_its_grid_exact_under_casts():
    model = converted()
    weights = [model[i].weight_lut.dequantize() for i in (0, 2)]
    for cast in (
        lambda m: m.half(),
        lambda m: m.bfloat16(),
        lambda m: m.to(torch.float64),
        lambda m: m.to("cpu", torch.float16),
        lambda m: m.type(torch.float32),
    ):
        model = cast(model)
        for i, weight in zip((0, 2), weights, strict=True):
            layer = model[i]
            assert (layer.codes.dtype, layer.levels.dtype, layer.scale.dtype) == (torch.uint8, *2 * (torch.float32,))
            assert torch.equal(layer.weight_lut.dequantize(), weight)
    y = model.bfloat16()(randn(3, 64).bfloat16())
    assert y.dtype == model[0].bias.dtype == torch.bfloat16
    assert model.to("meta")[0].levels.device.type == "meta"


def test_a_packed_layer_reads_its_tensors_where_they_are_now():
    """A forward past nn.Module's attributes still sees what others put in their place."""

    class Twice(nn.Module):
        def forward(self, t):
            return 2 * t

    def layer() -> LutLinear:
        made = LutLinear.from_quant(linear(qk.LSQ(bits=4)))
        with torch.no_grad():
            made.bias.copy_(randn(24, seed=5))
        return made.requires_grad_(False)

    x, plain = randn(3, 64, seed=1), layer()
    y, product = plain(x), F.linear(x, plain.weight_lut.dequantize())
    for name in ("levels", "bias"):  # a trained table is a parameter, which parametrize takes
        parametrized = layer().train_table(scale=False) if name == "levels" else layer()
        nn.utils.parametrize.register_parametrization(parametrized, name, Twice())
        want = 2 * product + plain.bias if name == "levels" else product + 2 * plain.bias
        torch.testing.assert_close(parametrized(x), want)

    changed = layer()
    changed.__class__ = type("Other", (LutLinear,), {"bias": property(lambda self: self._parameters["bias"] * 2)})
    torch.testing.assert_close(changed(x), product + 2 * plain.bias)

    class Doubled(dict):
        def __getitem__(self, name):
            return super().__getitem__(name) * 2

    changed = layer()
    changed.__dict__["_parameters"] = Doubled(changed._parameters)
    torch.testing.assert_close(changed(x), product + 2 * plain.bias)

    moved = layer()  # as a replica has them
    bias = moved._parameters.pop("bias").detach()
    moved.bias = bias
    assert torch.equal(moved(x), y)
    replaced = torch.func.functional_call(plain, {"levels": plain.levels * 2}, (x,))
    torch.testing.assert_close(replaced, 2 * product + plain.bias)


def test_a_packed_layer_trains_its_bias_and_input():
    """What an adapter on top of packed weights needs."""
    model, x = converted(), randn(3, 64).requires_grad_()
    reference = net()
    model(x).square().sum().backward()
    own = x.detach().clone().requires_grad_()
    reference(own).square().sum().backward()
    torch.testing.assert_close(x.grad, own.grad)
    torch.testing.assert_close(model[0].bias.grad, reference[0].bias.grad)


# where modules run


@pytest.mark.parametrize("make", [net, converted])
def test_compiles_whole_with_gradients_for_any_batch(make):
    model = make()
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    for batch in (2, 3, 5, 8, 13):
        x = randn(batch, 64, seed=batch)
        torch.testing.assert_close(grads(model, compiled, x), grads(model, model, x))
    assert graphs.frame_count == 1


def test_a_quantized_model_runs_in_bfloat16_and_under_autocast():
    model = net(activation=None).bfloat16()
    x = randn(5, 64)
    assert model(x.bfloat16()).dtype == torch.bfloat16
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in grads(model, model, x.bfloat16()))
    for make in (net, converted):
        model = make()
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
            got = grads(model, model, x)
        assert y.dtype == torch.bfloat16
        scale = model(x).abs().max().item()
        torch.testing.assert_close(y.float(), model(x), rtol=0, atol=0.2 * scale)  # codes of activations may flip
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in got)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [net, converted])
def test_gradient_checkpointing_changes_nothing(make, reentrant):
    model, x = make(), randn(5, 64).requires_grad_()
    want = grads(model, model, x)
    got = grads(model, lambda x: checkpoint(model, x, use_reentrant=reentrant, preserve_rng_state=False), x)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_a_layer_used_twice_sums_its_gradients():
    layer, x = linear(n=64), randn(3, 64)
    twice = grads(layer, lambda x: layer(layer(x)), x)
    twin = copy.deepcopy(layer)
    layer.zero_grad()
    twin.zero_grad()
    twin(layer(x)).square().sum().backward()
    for got, a, b in zip(twice, layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, a.grad + b.grad)
