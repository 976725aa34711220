"""What the calls on whole models refuse, and what they say."""

import pytest
from torch import nn

import qkernels as qk
from qkernels.nn import LutLinear, QuantLinear

from .models import RULES, Net, make, trained


class WithExtra(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = LutLinear.from_quant(QuantLinear.from_float(nn.Linear(4, 4), weight=qk.LSQ(bits=4)))

    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


REFUSED = [
    (lambda: qk.plan(Net(), "conv"), TypeError, "plan: rules must be a sequence .*, got str"),
    (lambda: qk.plan(Net(), qk.LSQ(bits=4)), TypeError, "plan: rules must be a sequence .*, got LSQ"),
    (lambda: qk.plan(Net(), [], skip="conv"), TypeError, "skip must be a sequence of matches, got the str 'conv'"),
    (lambda: qk.plan(Net(), ["conv"]), TypeError, r"a rule must be a pair \(match, target\), got 'conv'"),
    (lambda: qk.plan(Net(), [(3, qk.LSQ(bits=4))]), TypeError, "a match must be a glob, .* got 3"),
    (
        lambda: qk.plan(Net(), [(int, qk.LSQ(bits=4))]),
        TypeError,
        "a match must be a glob, a module class .* <class 'int'>",
    ),
    (lambda: qk.plan(Net(), [("conv", "LSQ")]), TypeError, "a target must be a config, .* got 'LSQ'"),
    (lambda: qk.plan(Net(), [("conv", (qk.LSQ(bits=4), 4))]), TypeError, "a target must be a config"),
    (lambda: qk.plan(Net(), [], skip=[4]), TypeError, "a match must be a glob"),
    (
        lambda: qk.plan(Net(), [("conv", qk.LSQ(bits=4, granularity=32))]),
        ValueError,
        "plan: layer 'conv': LSQ: the group size must divide K=27, got 32",
    ),
    (
        lambda: qk.plan(Net(), [("head", qk.LSQ(bits=4, granularity=16))]),
        ValueError,
        "plan: layer 'head': .*group_size must divide K=32 and be a multiple of 32",
    ),
    (
        lambda: qk.plan(Net(), [("head", (qk.LSQ(bits=4), qk.POST(bits=4)))]),
        ValueError,
        "activations need granularity=\"tensor\", got 'row' in rule 'head'",
    ),
    (
        lambda: qk.prepare_(Net(), []),
        ValueError,
        "prepare_: the plan must quantize at least one layer, got none:\nlayer",
    ),
    (lambda: qk.prepare_(Net(), [("x", qk.LSQ(bits=4))]), ValueError, "note: rule 'x' fits no layer"),
    (lambda: qk.prepare_(Net(), qk.plan(Net(), RULES), skip=["conv"]), ValueError, "skip goes with rules"),
    (
        lambda: qk.prepare_(nn.Sequential(nn.Linear(2, 2)), qk.plan(Net(), RULES)),
        ValueError,
        r"the plan must be of this model, got layer 'conv' \(Conv2d \[16, 3, 3, 3\]\)",
    ),
    (
        lambda: qk.prepare_(nn.Linear(4, 4), [("*", qk.LSQ(bits=4))]),
        ValueError,
        "prepare_: layer '': the model itself cannot be replaced in place; use qk.nn.Quant",
    ),
    (
        lambda: qk.convert_(QuantLinear.from_float(nn.Linear(4, 4), weight=qk.LSQ(bits=4))),
        ValueError,
        "convert_: layer '': the model itself cannot be replaced in place; use qk.nn.Lut",
    ),
    (lambda: qk.convert_(Net()), ValueError, r"convert_: .* got none \(prepare_ it first\)"),
    (
        lambda: qk.convert_(nn.Sequential(WithExtra())),
        ValueError,
        r"got none \(it has 1 packed layers: converted already\)",
    ),
    (lambda: qk.convert_(make()), ValueError, "convert_: layer 'mlp.0': its activation quantizer is not calibrated"),
    (
        lambda: qk.save_packed(trained(), "."),
        ValueError,
        "must be converted, got quantized layers conv, mlp.0, mlp.2, head",
    ),
    (lambda: qk.save_packed(Net(), "."), ValueError, "save_packed: the model must have a packed layer, got none"),
    (lambda: qk.save_packed(WithExtra().layer, "."), ValueError, "got a packed layer itself"),
    (lambda: qk.save_packed(WithExtra(), "."), ValueError, "state must be tensors, got dict at '_extra_state'"),
]


@pytest.mark.parametrize(("call", "exception", "message"), REFUSED)
def test_refuses_with_reason(call, exception, message):
    with pytest.raises(exception, match=message):
        call()
