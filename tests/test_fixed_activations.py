"""Activation quantizers without gradients: one call of the op, and the same bits as with them."""

import copy
import pickle

import pytest
import torch
import torch.nn.utils.parametrize
from torch import nn

import qkernels as qk
from qkernels.nn import AdaptiveStep, LutLinear, QuantConv2d, Quantizer, QuantLinear
from qkernels.ops.lsq import op as lsq

from .test_nn import DTYPES, randn

CONFIGS = [
    qk.LSQ(bits=4), qk.LSQ(bits=8, signed=False), qk.LSQ(bits=2, signed=True), qk.DAQ(bits=4), qk.DAQ(bits=1),
    qk.DAQ(bits=3, signed=False), qk.DAQ(bits=4, variant="scale"), qk.DAQ(bits=2, variant="scale", signed=False),
    qk.ASQ(bits=4), qk.ASQ(bits=8, signed=False, bound=1.0), qk.CPQ(bits=4), qk.DQ(bits=3),
]  # fmt: skip


def make(config, k: int = 48, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The activation quantizer of a linear layer, calibrated and moved a little."""
    torch.manual_seed(0)
    layer = QuantLinear(nn.Linear(k, 8).to(dtype), weight=qk.LSQ(bits=4), activation=config)
    layer(randn(16, k).to(dtype))
    with torch.no_grad():
        for p in layer.activation_quantizer.parameters():
            p.mul_(1.03)
    return layer.activation_quantizer.eval()


def odd(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Values of every kind."""
    x = 3 * randn(*shape, seed=1)
    flat = x.view(-1)
    for i, value in enumerate((0.0, -0.0, 1e-40, -1e-40, torch.inf, -torch.inf, torch.nan, 1e30)):
        flat[5 * i] = value
    return x.to(dtype)


def bits_of(y: torch.Tensor) -> torch.Tensor:
    y = torch.where(y.isnan(), torch.nan, y)
    return y.contiguous().view(torch.int16 if y.itemsize == 2 else torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_no_gradients_change_no_bit(config, dtype):
    quantizer = make(config, dtype=dtype)
    for shape in ((1, 48), (5, 48), (2, 3, 48)):
        x = odd(*shape, dtype=dtype) if not isinstance(quantizer, AdaptiveStep) else randn(*shape).to(dtype)
        want = quantizer(x.clone().requires_grad_()).detach()
        with torch.no_grad():
            assert torch.equal(bits_of(quantizer(x)), bits_of(want))
        with torch.inference_mode():
            assert torch.equal(bits_of(quantizer(x.clone())), bits_of(want))
        frozen = copy.deepcopy(quantizer).requires_grad_(False)
        assert torch.equal(bits_of(frozen(x)), bits_of(want))


@pytest.mark.parametrize("config", CONFIGS[:-2], ids=str)  # all but CPQ and DQ
def test_it_is_one_call_of_the_op(config, monkeypatch):
    """Of LSQ, DAQ and ASQ, also in what convert_ makes of a layer; not where x needs a gradient."""
    quantizer, x = make(config), randn(5, 48)
    packed = LutLinear.from_quant(QuantLinear(nn.Linear(48, 8), weight=qk.LSQ(bits=4)))
    packed.activation_quantizer = quantizer
    want = packed(x)
    module = "daq" if isinstance(config, qk.DAQ) else "lsq"
    monkeypatch.setattr(f"qkernels.ops.{module}.op.call", None)
    with torch.no_grad():
        assert torch.equal(packed(x), want)
    with pytest.raises(TypeError, match="not callable"):
        quantizer(x)  # its parameters do
    with pytest.raises(TypeError, match="not callable"):
        quantizer(x.requires_grad_())


def test_a_changed_parameter_is_seen_however_it_was_changed():
    x = randn(5, 48)
    changes = [
        lambda q: q.step.data.mul_(1.5),
        lambda q: q.step.detach().numpy().__imul__(0.7),
        lambda q: q.load_state_dict({"step": torch.tensor([0.11]), "calibration": q.calibration}),
        lambda q: q.calibrate(7 * x.abs()),
        lambda q: setattr(q, "config", qk.LSQ(bits=3, signed=True)),
        lambda q: q.half().float(),
        lambda q: setattr(q, "step", nn.Parameter(torch.tensor([0.3]))),
        lambda q: q.step.data.fill_(torch.nan),
        lambda q: q.step.data.fill_(-0.25),
    ]
    quantizer = make(qk.LSQ(bits=4))
    for change in changes:
        with torch.no_grad():
            quantizer(x)
            change(quantizer)
            got = quantizer(x)
        assert torch.equal(bits_of(got), bits_of(quantizer(x.clone().requires_grad_()).detach()))


def test_a_parametrized_step_is_seen():
    """The parameter lies elsewhere then, and the attribute is computed."""
    quantizer, x = make(qk.LSQ(bits=4)), randn(5, 48)
    with torch.no_grad():
        before = quantizer(x)
        torch.nn.utils.parametrize.register_parametrization(quantizer, "step", Twice())
        after = quantizer(x)
        assert not torch.equal(after, before)
        assert torch.equal(after, qk.lsq(x, quantizer.step, bits=4))
        quantizer.parametrizations.step.original.mul_(1.5)
        assert torch.equal(quantizer(x), qk.lsq(x, quantizer.step, bits=4))


class Twice(nn.Module):
    def forward(self, t: torch.Tensor) -> torch.Tensor:
        return 2 * t


def test_other_layouts_dtypes_and_errors_are_as_before():
    quantizer = make(qk.LSQ(bits=4))
    x = randn(2, 48, 3, 5).to(memory_format=torch.channels_last)
    for other in (x, x.transpose(1, 3), x[:, :, 1:, ::2], x.double(), x[:0], torch.tensor(0.7)):
        want = quantizer(other)
        with torch.no_grad():
            y = quantizer(other)
        assert want.requires_grad and torch.equal(y, want)
        assert y.stride() == want.stride() and y.dtype == want.dtype
    with torch.no_grad():
        with pytest.raises(TypeError, match="lsq: x must be a float tensor, got torch.int64"):
            quantizer(torch.ones(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="lsq: x and step must be on one device, got meta and cpu"):
            quantizer(torch.ones(3, device="meta"))


@pytest.mark.parametrize("config", CONFIGS[:-2], ids=str)
def test_images_keep_their_layout(config):
    layer = QuantConv2d(nn.Conv2d(12, 4, 3), weight=qk.LSQ(bits=4), activation=config)
    x = randn(2, 12, 5, 5)
    layer(x)
    for image in (x, x.to(memory_format=torch.channels_last), x[0]):
        want = layer.activation_quantizer(image)
        with torch.no_grad():
            y = layer.activation_quantizer(image)
        assert want.requires_grad and torch.equal(y, want) and y.stride() == want.stride()


@pytest.mark.parametrize("config", [qk.LSQ(bits=4), qk.ASQ(bits=4)], ids=str)
def test_derivatives_of_torch_func_are_as_before(config):
    """There requires_grad says nothing."""
    quantizer, x = make(config).requires_grad_(False), randn(5, 48)
    own = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(quantizer(own).sum(), own)
    assert torch.equal(torch.func.grad(lambda x: quantizer(x).sum())(x), want)
    with pytest.raises((RuntimeError, NotImplementedError)):  # no forward mode: never a tangent of 0
        torch.func.jvp(quantizer, (x,), (torch.ones_like(x),))


def test_the_environments_backend_is_obeyed(monkeypatch):
    quantizer, x = make(qk.LSQ(bits=4)), randn(5, 48)
    with torch.no_grad():
        want = quantizer(x)
        monkeypatch.setenv("QKERNELS_BACKEND", "reference")
        assert torch.equal(quantizer(x), want)
        monkeypatch.setenv("QKERNELS_BACKEND", "abacus")
        with pytest.raises(NotImplementedError, match="lsq: QKERNELS_BACKEND='abacus' cannot run: no such backend"):
            quantizer(x)


def test_copies_and_pickles_stand_alone():
    quantizer, x = make(qk.DAQ(bits=4)), randn(5, 48)
    with torch.no_grad():
        want = quantizer(x)
        for twin in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
            assert torch.equal(twin(x), want)
            twin.scale.data.mul_(2)
            assert torch.equal(quantizer(x), want) and not torch.equal(twin(x), want)


def test_a_weight_quantizer_follows_its_weight():
    """DAQ's bounds are in units of the weight's deviation."""
    w = randn(8, 48)
    for shape in ((8, 48), None):  # without a role DAQ is a weight's
        quantizer = Quantizer(qk.DAQ(bits=4, signed=True), shape)
        quantizer.calibrate(w)
        for weight in (w, 3 * w, w + 1):
            want = quantizer(weight)
            with torch.no_grad():
                assert want.requires_grad and torch.equal(quantizer(weight), want)


def test_fixed_refuses_what_lsq_refuses():
    with pytest.raises(ValueError, match="lsq: bits must be between 2 and 8"):
        lsq.fixed(torch.ones(1), bits=9)
