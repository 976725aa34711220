"""Quantizers of layers: where their parameters start, that they stay positive, and what a method may bring."""

import dataclasses

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import methods
from qkernels.nn import LutLinear, Quantizer, quantizers
from qkernels.nn.quantizer import magnitude

from .test_nn import ACTIVATION, DTYPES, ONE_STEP, grads, linear, randn

# where the parameters start


@pytest.mark.parametrize("method", ONE_STEP)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", ["normal", "laplace"])
def test_the_start_has_no_more_error_than_the_papers(method, bits, shape):
    torch.manual_seed(0)
    x = torch.randn(16, 300) if shape == "normal" else torch.distributions.Laplace(0.0, 1.0).sample((16, 300))
    if method is not qk.POST:
        config, paper = method(bits=bits, signed=True), 2 * x.abs().mean(1) / (2 ** (bits - 1) - 1) ** 0.5
    else:
        config, paper = qk.POST(bits=bits), x.abs().sort(1).values[:, 296]  # the 297th of 300
    start, *others = config.init(x, 16).values()

    def error(parameter):
        return (config.quantize(x, parameter, *others) - x).square().sum(1)

    assert (error(start) <= error(paper) * 1.0001).all()  # a start tried as paper * 1.0 may differ in its last bit
    if shape == "normal" and (method is not qk.POST or bits < 4):
        assert error(start).sum() < 0.8 * error(paper).sum(), "the search found nothing"


@pytest.mark.parametrize("method", ONE_STEP)
def test_every_parameter_starts_positive(method):
    config = method(bits=4, granularity="row")
    config = dataclasses.replace(config, signed=True) if hasattr(config, "signed") else config
    x = randn(4, 64)
    x[1] = 0  # a row of zeros
    x[2, 1:] = 0  # a row of one value
    for start in config.init(x, 4).values():
        assert (start > 0).all() and start.isfinite().all()
    for start in config.init(torch.zeros(4, 64), 4).values():
        assert (start > 0).all() and (start < 1).all()
    for size in (1e-30, 1e30):
        for start in config.init(randn(4, 64) * size, 4).values():
            assert (start > 0.01 * size).all() and (start < 10 * size).all()


def test_an_activation_quantizer_takes_its_sign_and_step_from_the_first_batch():
    for x, signed in ((randn(4, 64), True), (randn(4, 64).relu(), False)):
        layer = linear(activation=qk.LSQ(bits=4)).eval()
        assert not layer.activation_quantizer.calibrated
        layer(x)
        quantizer = layer.activation_quantizer
        assert quantizer.calibrated and quantizer.config.signed is signed
        step = quantizer.step.item()
        layer(10 * x)
        assert quantizer.step.item() == step, "the second batch must change nothing"
    fixed = linear(activation=qk.LSQ(bits=4, signed=True))
    fixed(randn(4, 64).relu())
    assert fixed.activation_quantizer.config.signed is True


def test_the_first_batch_may_come_in_inference_mode():
    layer, twin = linear(activation=ACTIVATION), linear(activation=ACTIVATION)
    twin(randn(3, 64))
    with torch.inference_mode():
        layer(randn(3, 64))
    assert torch.equal(layer.activation_quantizer.step, twin.activation_quantizer.step)
    assert all(g.isfinite().all() for g in grads(layer, layer, randn(3, 64)))


def test_a_batch_of_zeros_passes_and_does_not_calibrate():
    layer = linear(activation=qk.LSQ(bits=4))
    assert torch.equal(layer(torch.zeros(3, 64)), layer.bias.expand(3, 24))
    assert not layer.activation_quantizer.calibrated
    layer(randn(3, 64))
    assert layer.activation_quantizer.calibrated
    assert layer(torch.zeros(0, 64)).shape == (0, 24)


def test_an_uncalibrated_quantizer_refuses_to_compile_and_says_what_to_do():
    for call in (
        lambda: torch.compile(linear(activation=ACTIVATION), fullgraph=True, backend="eager")(randn(3, 64)),
        lambda: torch.export.export(linear(activation=ACTIVATION), (randn(3, 64),)),
    ):
        torch._dynamo.reset()
        with pytest.raises(Exception, match=r"not calibrated: run one batch without torch.compile, or qk.calibrate"):
            call()


# parameters stay positive


def test_a_step_that_crosses_zero_keeps_its_size():
    """No NaN, no grid of size 0: the op gets |p|, and the gradient is that of |p|."""
    layer = linear(qk.LSQ(bits=4))
    x, step = randn(5, 64), layer.weight_quantizer.step
    y = layer(x)
    g = torch.autograd.grad(y.sum(), step)[0]
    with torch.no_grad():
        step.neg_()
    crossed = layer(x)
    assert torch.equal(crossed, y)
    assert torch.equal(torch.autograd.grad(crossed.sum(), step)[0], -g)
    with torch.no_grad():
        step.zero_()
    y = layer(x)
    assert y.isfinite().all() and torch.autograd.grad(y.sum(), step)[0].isfinite().all()


def test_a_layer_recovers_from_an_optimizer_step_far_below_zero():
    torch.manual_seed(0)
    layer = linear(qk.LSQ(bits=4))
    target = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight_quantizer.step.fill_(-0.003)
    optimizer = torch.optim.Adam(layer.weight_quantizer.parameters(), lr=1e-3)
    for _ in range(200):
        error = (layer.weight_quantizer(layer.weight) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.03 * target.square().mean()


@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitude_is_the_parameter_itself_while_it_is_positive(dtype):
    p = torch.cat([torch.rand(1000) * 10.0**e for e in (-7, -4, -1, 0, 4)]).to(dtype)
    p = p[p > 0].requires_grad_()
    assert torch.equal(magnitude(p), p.float())
    assert torch.equal(torch.autograd.grad(magnitude(p).sum(), p)[0], torch.ones_like(p))
    assert magnitude(torch.zeros(1)) > 0 and magnitude(torch.tensor([torch.nan])).isnan()


# methods


@dataclasses.dataclass(frozen=True)
class Doubling:
    """A method that brings its own module."""

    bits: int = 2
    granularity: str = "tensor"
    n_levels = 4
    parameters = positive = ()

    def quantize(self, x):
        raise AssertionError("the module is asked instead")

    def module(self, shape, *, dtype, device):
        return OwnQuantizer(self, shape, dtype, device)


class OwnQuantizer(nn.Module):
    def __init__(self, config, shape, dtype, device):
        super().__init__()
        self.config, self.calibrated = config, False
        self.gain = nn.Parameter(torch.zeros(1, dtype=dtype, device=device))
        self.inner = Quantizer(qk.LSQ(bits=2), shape, dtype=dtype, device=device)

    def calibrate(self, x):
        self.gain.data.fill_(2)
        self.inner.calibrate(x)
        self.calibrated = True

    def forward(self, x):
        return self.inner(x) * self.gain

    def harden(self, x):
        hardened = self.inner.harden(x)
        return hardened._replace(scale=hardened.scale * self.gain.detach())


def test_a_method_may_bring_its_own_module():
    layer = linear(Doubling(), Doubling())
    assert isinstance(layer.weight_quantizer, OwnQuantizer) and layer.weight_quantizer.gain.item() == 2
    assert [name for name, _ in quantizers(layer)] == ["weight_quantizer", "activation_quantizer"]
    layer.activation_quantizer.calibrate(randn(3, 64))
    x, packed = randn(3, 64), LutLinear.from_quant(layer)
    assert torch.equal(packed.weight_lut.dequantize(), layer.weight_quantizer(layer.weight))
    torch.testing.assert_close(packed(x), layer(x))


def test_configs_go_through_json_and_are_values():
    for config in (
        qk.CPQ(bits=4, dropbits="bitwise", penalty=0.1),
        qk.LSQ(bits=3, signed=False, grad_scale=False),
        qk.POST(bits=2, granularity=64, grid="release"),
    ):
        assert methods.from_dict(methods.to_dict(config)) == config
        assert hash(config) == hash(dataclasses.replace(config))
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.bits = 8
