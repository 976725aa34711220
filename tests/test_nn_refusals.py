"""What the modules refuse, and the sentence that says why."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import qkernels as qk
from qkernels import methods
from qkernels.nn import LutConv2d, LutLinear, QuantConv2d, Quantizer, QuantLinear
from qkernels.nn.linear import refusal
from qkernels.nn.quantizer import make_quantizer
from qkernels.ops import calibration

from .test_nn import ACTIVATION, linear, randn

REFUSED = [
    (lambda: qk.LSQ(bits=9), ValueError, "LSQ: bits must be between 1 and 8"),
    (lambda: qk.LSQ(bits=1, signed=True), ValueError, r"LSQ: bits must be between 2 and 8 \(signed\), got 1"),
    (lambda: qk.LSQ(bits=4.0), TypeError, "LSQ: bits must be an int, got float"),
    (lambda: qk.LSQ(bits=4, signed="yes"), TypeError, "LSQ: signed must be a bool, got str"),
    (lambda: qk.LSQ(bits=4, grad_scale=0.1), TypeError, "LSQ: grad_scale must be a bool, got float"),
    (lambda: qk.LSQ(bits=4, granularity="col"), ValueError, 'granularity must be "tensor", "row" or a group size'),
    (lambda: qk.LSQ(bits=4, granularity=0), ValueError, "group size >= 1, got 0"),
    (lambda: qk.LSQ(bits=4, granularity=1.5), TypeError, 'granularity must be "tensor", "row" or an int, got float'),
    (lambda: qk.LSQ(bits=4).quantize(randn(2, 4), torch.ones(1)), ValueError, "LSQ: signed must be decided"),
    (lambda: qk.CPQ(bits=1, symmetric=True), ValueError, r"CPQ: bits must be between 2 and 8 \(signed\), got 1"),
    (lambda: qk.CPQ(bits=4, granularity="col"), ValueError, "CPQ: granularity must be"),
    (lambda: qk.CPQ(bits=4, signed=1), TypeError, "CPQ: signed must be a bool, got int"),
    (lambda: qk.CPQ(bits=4, symmetric=1), TypeError, "CPQ: symmetric must be a bool, got int"),
    (lambda: qk.CPQ(bits=4, estimator="ste"), ValueError, "CPQ: estimator must be argmax or full, got 'ste'"),
    (lambda: qk.CPQ(bits=4, truncate=None), TypeError, "CPQ: truncate must be a bool, got NoneType"),
    (lambda: qk.CPQ(bits=4, dropbits="bits"), ValueError, "dropbits must be None, bitwise or endpoints, got 'bits'"),
    (
        lambda: qk.CPQ(bits=4, symmetric=True, signed=False),
        ValueError,
        "dropbits must go with signed=True",
    ),
    (
        lambda: qk.CPQ(bits=4, dropbits="bitwise", signed=False),
        ValueError,
        "dropbits must go with signed=True",
    ),
    (
        lambda: qk.CPQ(bits=4, dropbits="bitwise", estimator="full"),
        ValueError,
        "must go with estimator='argmax'",
    ),
    (lambda: qk.CPQ(bits=4, dropbits="bitwise", penalty="1"), TypeError, "CPQ: penalty must be a float, got str"),
    (
        lambda: qk.CPQ(bits=4, dropbits="bitwise", penalty=-1.0),
        ValueError,
        "must be at least 0 and finite, got -1",
    ),
    (
        lambda: qk.CPQ(bits=4, penalty=0.1),
        ValueError,
        "penalty must go with dropbits, got penalty=0.1",
    ),
    (lambda: linear(activation=qk.CPQ(bits=4, dropbits="bitwise")), ValueError, "dropbits must go with a weight"),
    (
        lambda: qk.CPQ(bits=4).quantize(randn(2, 4), torch.ones(1), torch.ones(1)),
        ValueError,
        "CPQ: signed must be decided",
    ),
    (lambda: qk.POST(bits=1), ValueError, "post: bits must be between 2 and 8"),
    (lambda: qk.POST(bits=4, grid="log"), ValueError, "post: grid must be one of"),
    (lambda: qk.POST(bits=8, grid="release"), ValueError, "POST: a code must fit 8 bits, got 257 levels"),
    (lambda: qk.POST(bits=4, granularity=True), TypeError, "POST: granularity must be"),
    (lambda: qk.POST(bits=4, clip_grad=1), TypeError, "POST: clip_grad must be a bool, got int"),
    (lambda: qk.POST(bits=4, grad_scale=None), TypeError, "POST: grad_scale must be a bool, got NoneType"),
    (lambda: methods.from_dict({"method": "GPTQ"}), ValueError, "method must be one of LSQ, POST.*, got 'GPTQ'"),
    (lambda: methods.from_dict({"method": "LSQ", "bit": 3}), ValueError, "LSQ: options must be among .*, got bit"),
    (lambda: calibration.blocks("LSQ", 48, (4, 64)), ValueError, "LSQ: the group size must divide K=64, got 48"),
    (lambda: linear(qk.LSQ(bits=4, granularity=48)), ValueError, "LSQ: the group size must divide K=64, got 48"),
    (lambda: linear(qk.LSQ(bits=4, granularity=16)), ValueError, "group_size must divide K=64 and be a multiple of 32"),
    (
        lambda: linear(activation=qk.POST(bits=4)),
        ValueError,
        "POST: activations need granularity=\"tensor\", got 'row'",
    ),
    (lambda: linear("LSQ"), TypeError, "weight must be a method's config such as qk.LSQ"),
    (lambda: linear(qk.LSQ), TypeError, "weight must be a method's config"),
    (lambda: linear(activation=4), TypeError, "activation must be a method's config .*, got 4"),
    (lambda: make_quantizer(None, randn(2, 2)), TypeError, "weight must be a method's config"),
    (
        lambda: QuantLinear.from_float(nn.Conv2d(1, 1, 1), weight=qk.LSQ(bits=4)),
        TypeError,
        "exactly nn.Linear, got Conv2d",
    ),
    (lambda: QuantConv2d.from_float(nn.Conv1d(1, 1, 1), weight=qk.LSQ(bits=4)), TypeError, "nn.Conv2d, got Conv1d"),
    (lambda: QuantLinear.from_float(linear(), weight=qk.LSQ(bits=4)), TypeError, "exactly nn.Linear, got QuantLinear"),
    (
        lambda: QuantLinear.from_float(nn.Linear(4, 4, device="meta"), weight=qk.LSQ(bits=4)),
        ValueError,
        "QuantLinear: its weight is on the meta device: load it first",
    ),
    (
        lambda: QuantLinear.from_float(prune.identity(nn.Linear(4, 4), "weight"), weight=qk.LSQ(bits=4)),
        ValueError,
        "its weight must be a parameter",
    ),
    (
        lambda: Quantizer(qk.LSQ(bits=4)).calibrate(torch.zeros(0)),
        ValueError,
        "LSQ: the tensor to calibrate on must hold",
    ),
    (
        lambda: Quantizer(qk.LSQ(bits=4)).calibrate(torch.ones(1, device="meta")),
        ValueError,
        "must hold data, got .* meta",
    ),
    (lambda: Quantizer(qk.LSQ(bits=4))(torch.tensor([1, torch.nan])), ValueError, "must be finite, got 1 values that"),
    (
        lambda: Quantizer(qk.LSQ(bits=8), dtype=torch.float16).calibrate(randn(64) * 1e-7),
        ValueError,
        "LSQ: step must be positive and finite in torch.float16, got 0",
    ),
    (lambda: LutLinear.from_quant(nn.Linear(4, 4)), TypeError, "LutLinear: layer must be a QuantLinear, got Linear"),
    (lambda: LutConv2d.from_quant(linear()), TypeError, "LutConv2d: layer must be a QuantConv2d, got QuantLinear"),
    (lambda: LutLinear(nn.Conv2d(1, 1, 1), None), TypeError, "LutLinear: layer must be a Linear, got Conv2d"),
    (
        lambda: LutLinear(nn.Linear(4, 4), LutLinear.from_quant(linear()).weight_lut),
        ValueError,
        r"must have the layer's shape \[4, 4\], got \[24, 64\]",
    ),
    (
        lambda: LutLinear.from_quant(linear(activation=ACTIVATION)),
        ValueError,
        "its activation quantizer is not calibrated",
    ),
]


@pytest.mark.parametrize(("call", "exception", "message"), REFUSED)
def test_refuses_with_reason(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


def test_weights_that_are_not_finite_or_not_float_are_refused():
    layer = nn.Linear(4, 4)
    layer.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="must be finite, got 1 values that are not"):
        QuantLinear.from_float(layer, weight=qk.LSQ(bits=4))
    layer = linear()
    layer.weight.data[0, :2] = torch.inf
    with pytest.raises(ValueError, match="its weight must be finite, got 2 values that are not"):
        LutLinear.from_quant(layer)
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    assert refusal(layer, nn.Linear) == "its weight must be float, got torch.int8"


def test_a_packed_weight_that_is_not_the_trained_one_is_refused(monkeypatch):
    layer = linear()
    honest = layer.weight_quantizer.harden

    def other(weight):
        hardened = honest(weight)
        return hardened._replace(codes=hardened.codes.clone().index_fill_(0, torch.tensor([3]), 0))

    monkeypatch.setattr(layer.weight_quantizer, "harden", other)
    with pytest.raises(ValueError, match=r"must equal the trained quantized weight, got \d+ values that differ"):
        LutLinear.from_quant(layer)


def test_a_layer_that_was_compiled_in_place_is_quantized():
    """Module.compile() keeps a call bound to the old layer; it must not be carried over."""
    model, x = nn.Sequential(nn.Linear(64, 32)), torch.randn(3, 64)
    model[0].compile(backend="eager")
    before = model(x)
    qk.prepare_(model, [(nn.Linear, qk.LSQ(bits=2))])
    assert not torch.equal(model(x), before)
    model[0].compile(backend="eager")
    model(x)
    qk.convert_(model)
    model[0].levels.zero_()
    assert torch.equal(model(x), model[0].bias.expand(3, 32))


def test_a_forward_set_on_the_instance_is_refused():
    model = nn.Sequential(nn.Linear(8, 4))
    forward = model[0].forward
    model[0].forward = lambda x: forward(x)
    assert "set on the instance" in qk.plan(model, [("*", qk.LSQ(bits=4))]).layers[0].reason
    with pytest.raises(ValueError, match="set on the instance"):
        qk.nn.QuantLinear.from_float(model[0], weight=qk.LSQ(bits=4))
    trained = nn.Sequential(nn.Linear(8, 4))
    qk.prepare_(trained, [("*", qk.LSQ(bits=4))])
    own = trained[0].forward
    trained[0].forward = lambda x: own(x)
    with pytest.raises(ValueError, match="convert_: layer '0'.*set on the instance"):
        qk.convert_(trained)


def test_huge_weights_start_with_a_finite_step():
    layer = nn.Linear(64, 32)
    with torch.no_grad():
        layer.weight.mul_(1e38)
    quantized = qk.nn.QuantLinear.from_float(layer, weight=qk.LSQ(bits=4))
    assert quantized.weight_quantizer.step.isfinite().all()
    assert quantized.weight_quantizer(layer.weight).isfinite().all()


def test_a_broken_activation_step_is_not_packed():
    model = nn.Sequential(nn.Linear(8, 4))
    qk.prepare_(model, [("*", (qk.LSQ(bits=4), qk.LSQ(bits=4)))])
    qk.calibrate(model, torch.randn(5, 8))
    with torch.no_grad():
        model[0].activation_quantizer.step.fill_(torch.nan)
    with pytest.raises(ValueError, match="convert_: layer '0'.*step must be finite, got nan"):
        qk.convert_(model)


def test_a_broken_activation_step_is_not_loaded(tmp_path):
    model = nn.Sequential(nn.Linear(8, 4))
    qk.prepare_(model, [("*", (qk.LSQ(bits=4), qk.LSQ(bits=4)))])
    qk.calibrate(model, torch.randn(5, 8))
    qk.convert_(model)
    with torch.no_grad():
        model[0].activation_quantizer.step.fill_(torch.nan)
    qk.save_packed(model, tmp_path)
    with pytest.raises(ValueError, match="0.activation_quantizer.step' must be finite"):
        qk.load_packed(nn.Sequential(nn.Linear(8, 4)), tmp_path)


def test_a_plan_refuses_a_width_that_no_weight_can_have():
    with pytest.raises(ValueError, match="LSQ: bits must be between 2 and 8 .signed., got 1"):
        qk.plan(nn.Sequential(nn.Linear(8, 4)), [("*", qk.LSQ(bits=1))])


def test_a_single_number_calibrates_an_activation():
    quantizer = Quantizer(qk.LSQ(bits=4))
    y = quantizer(torch.tensor(3.0))
    assert y.shape == () and abs(y.item() - 3) < 0.3 and quantizer.config.signed is False
