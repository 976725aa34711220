"""DQ as a layer's method: the codebook of a weight trains, survives crossings and optimizers, and packs exactly."""

import io

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import methods
from qkernels.nn import CodebookQuantizer, LutLinear, QuantConv2d, QuantLinear
from qkernels.ops.soft_assign.config import inverse_temperature


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(config: qk.DQ | None = None, n: int = 24, k: int = 64, dtype: torch.dtype = torch.float32) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_float(nn.Linear(k, n).to(dtype), weight=config or qk.DQ(bits=3))


def error(config: qk.DQ, w: torch.Tensor) -> float:
    levels = config.init(w, 1)["levels"]
    return (config.quantize(w, levels) - w).square().mean().item()


@pytest.mark.parametrize("granularity", ["tensor", "row", 32])
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_packed_weight_is_the_trained_weight_to_the_bit(granularity, bits, dtype):
    layer = linear(qk.DQ(bits=bits, granularity=granularity), dtype=dtype)
    with torch.no_grad():
        levels = layer.weight_quantizer.levels
        levels.mul_(torch.rand_like(levels) + 0.5)  # in another order, too
        levels[0] = -0.0
    packed = LutLinear.from_quant(layer)
    weight = layer.weight_quantizer(layer.weight).detach()
    got = packed.weight_lut.dequantize(dtype)
    assert torch.equal(got, weight) and torch.equal(got.signbit(), weight.signbit())
    assert packed.levels.numel() == 1 << bits and packed.bits in (bits, 8)
    real = packed.scale[packed.scale > 0]  # the rest fills up a tile
    assert real.unique().numel() == {"tensor": 1, "row": 24, 32: 48}[granularity]


def test_a_convolution_packs_too():
    conv = QuantConv2d.from_float(nn.Conv2d(3, 8, 3), weight=qk.DQ(bits=4, granularity="row"))
    model = nn.Sequential(conv)
    x = randn(2, 3, 9, 9)
    want = model(x)
    report = qk.convert_(model)
    torch.testing.assert_close(model(x), want)
    assert report.exact


def test_lloyd_starts_with_less_error_than_quantiles_and_uniform_grids():
    for w in (randn(64, 100), torch.distributions.Laplace(0.0, 1.0).sample((64, 100))):
        for bits in (2, 3, 4):
            lloyd, quantile = (error(qk.DQ(bits=bits, levels_init=i), w) for i in ("lloyd", "quantile"))
            uniform = qk.LSQ(bits=bits, signed=True)
            step = uniform.init(w, 1)["step"]
            least = (uniform.quantize(w, step) - w).square().mean().item()
            assert lloyd < 0.97 * least and lloyd < 0.97 * quantile


def test_every_level_of_lloyd_is_the_mean_of_what_it_serves():
    w = randn(40, 50)
    levels = qk.DQ(bits=2).init(w, 1)["levels"]
    codes = qk.harden("soft_assign", w, levels, torch.ones(1), hard=True).codes
    for k, level in enumerate(levels):
        assert abs(w[codes == k].double().mean() - level.double()) < 1e-3  # thirty steps, not infinitely many


def test_odd_weights_start_finite():
    for start in ("lloyd", "quantile"):
        config = qk.DQ(bits=3, levels_init=start, granularity="row")
        for w in (torch.zeros(4, 16), torch.ones(4, 16), torch.eye(4, 16), randn(4, 16) * 1e-30, randn(4, 16) * 1e15):
            layer = nn.Linear(16, 4)
            layer.weight.data.copy_(w)
            quant = QuantLinear.from_float(layer, weight=config)
            quant(randn(2, 16)).sum().backward()
            assert quant.weight.grad.isfinite().all() and quant.weight_quantizer.levels.grad.isfinite().all()
            assert quant.weight_quantizer(quant.weight).isfinite().all()
            LutLinear.from_quant(quant)


def test_levels_are_a_set():
    """Any order of them is the same grid, so one may pass another in training; each keeps its own gradient."""
    layer = linear()
    quantizer, w = layer.weight_quantizer, layer.weight
    y = quantizer(w)
    (g,) = torch.autograd.grad(y.square().sum(), quantizer.levels)
    order = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])
    with torch.no_grad():
        quantizer.levels.copy_(quantizer.levels[order])
    again = quantizer(w)
    assert torch.equal(again, y)
    assert torch.equal(torch.autograd.grad(again.square().sum(), quantizer.levels)[0], g[order])


def test_a_level_that_serves_nothing_stays():
    layer = linear()
    with torch.no_grad():
        layer.weight_quantizer.levels[7] = 100.0
        layer.weight_quantizer.sharpen(1e5)  # of a spacing that the far level makes large
    optimizer = torch.optim.SGD(layer.weight_quantizer.parameters(), lr=0.1)
    layer(randn(4, 64)).sum().backward()
    before = layer.weight_quantizer.levels.detach().clone()
    optimizer.step()
    moved = layer.weight_quantizer.levels != before
    assert not moved[7] and moved[:7].any()


def test_the_gradient_of_the_levels_is_scaled_by_how_many_elements_a_level_has():
    w, levels = randn(32, 64), torch.linspace(-2, 2, 8).requires_grad_()

    def gradient(scaled):
        y = qk.DQ(bits=3, grad_scale=scaled).quantize(w, levels)
        return torch.autograd.grad(y, levels, randn(32, 64, seed=1))[0]

    torch.testing.assert_close(gradient(True), gradient(False) * (32 * 64 / 8) ** -0.5)


def test_sharpness_is_relative_to_the_spacing_and_can_be_annealed():
    layer = linear()
    quantizer = layer.weight_quantizer
    q = quantizer.levels.detach().sort().values
    spacing = (q[-1] - q[0]) / 7
    torch.testing.assert_close(inverse_temperature(q, quantizer.sharpness), (4.0 / spacing**2).reshape(1))
    (soft,) = torch.autograd.grad(quantizer(layer.weight).sum(), layer.weight)
    quantizer.sharpen(400.0)
    (sharp,) = torch.autograd.grad(quantizer(layer.weight).sum(), layer.weight)
    assert (sharp < 0.01).float().mean() > 0.5 > (soft < 0.01).float().mean(), "steps have no slope but at their edges"
    assert linear(qk.DQ(bits=3, sharpness=9.0)).weight_quantizer.sharpness == 9.0
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="sharpness must be positive and finite, got"):
            quantizer.sharpen(bad)


def test_training_finds_better_levels_than_a_bad_start():
    layer = linear()
    quantizer, target = layer.weight_quantizer, layer.weight.detach().clone()
    with torch.no_grad():
        quantizer.levels.copy_(torch.linspace(-0.02, 0.02, 8))  # the weights are spread over +-1/8
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.002)
    first = None
    for _ in range(150):
        loss = (quantizer(target) - target).square().mean()
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1 * first


def test_the_state_carries_levels_scale_and_sharpness():
    layer, other = linear(qk.DQ(bits=3, granularity="row")), linear(qk.DQ(bits=3, granularity="row"))
    with torch.no_grad():
        layer.weight.mul_(3)
    layer.weight_quantizer.calibrate(layer.weight)
    layer.weight_quantizer.sharpen(12.0)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(randn(3, 64)), layer(randn(3, 64))) and other.weight_quantizer.sharpness == 12
    assert {k.rpartition(".")[2] for k in layer.weight_quantizer.state_dict()} == {
        "levels", "scale", "sharpness", "calibration",
    }  # fmt: skip


def test_a_soft_layer_trains_and_refuses_to_convert_with_the_reason():
    model = nn.Sequential(linear(qk.DQ(bits=3, soft=True)))
    model(randn(2, 64)).sum().backward()
    w = model[0].weight_quantizer(model[0].weight)
    assert w.unique().numel() > 8
    with pytest.raises(ValueError, match=r"convert_: layer '0': DQ: only a hard forward has codes, got soft=True"):
        qk.convert_(model)


def test_it_compiles_and_shows_itself():
    layer = linear(qk.DQ(bits=3, granularity="row"))
    x = randn(4, 64)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    assert "DQ(bits=3, row), P=24, K=8" in repr(layer)
    assert isinstance(layer.weight_quantizer, CodebookQuantizer)


def test_the_config_is_a_value_and_goes_through_json():
    config = qk.DQ(bits=3, levels_init="quantile", sharpness=2.0, balance="sqrt", signed=False)
    assert methods.from_dict(methods.to_dict(config)) == config and hash(config)
    text = "DQ(bits=3, tensor, levels_init=quantile, sharpness=2.0, balance=sqrt, unsigned)"
    assert methods.describe(config) == text


REFUSED = [
    (lambda: qk.DQ(bits=9), ValueError, r"DQ: bits must be between 1 and 8 \(unsigned\), got 9"),
    (lambda: qk.DQ(bits=4.0), TypeError, "DQ: bits must be an int, got float"),
    (lambda: qk.DQ(bits=4, granularity="col"), ValueError, 'DQ: granularity must be "tensor", "row" or a group size'),
    (lambda: qk.DQ(bits=4, levels_init="best"), ValueError, "levels_init must be one of lloyd, quantile, got 'best'"),
    (
        lambda: qk.DQ(bits=4, balance="max"),
        ValueError,
        "balance must be one of normalized, sqrt, log, plain, got 'max'",
    ),
    (lambda: qk.DQ(bits=4, sharpness="4"), TypeError, "sharpness must be a float, got str"),
    (lambda: qk.DQ(bits=4, sharpness=0.0), ValueError, "sharpness must be positive and finite, got 0.0"),
    (lambda: qk.DQ(bits=4, soft=1), TypeError, "DQ: soft must be a bool, got int"),
    (lambda: qk.DQ(bits=4, grad_scale=0.1), TypeError, "DQ: grad_scale must be a bool, got float"),
    (lambda: qk.DQ(bits=4, signed="yes"), TypeError, "DQ: signed must be a bool, got str"),
]


@pytest.mark.parametrize("call, exception, message", REFUSED)
def test_refuses_with_reason(call, exception, message):
    with pytest.raises(exception, match=message):
        call()
