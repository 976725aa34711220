"""Whole models as files: what is saved, what loads, what is refused."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import files

from .models import RULES, W4A4, Net, images, make, trained


def test_a_saved_model_loads_in_a_new_process_to_the_same_bits(tmp_path):
    model = trained()
    qk.convert_(model)
    qk.save_packed(model, tmp_path)
    torch.save((images(), model(images()).detach()), tmp_path / "expected.pt")
    script = """
import sys, pickle, torch
import qkernels as qk
from tests.models import Net
def forbidden(*a, **k):
    raise AssertionError("pickle")
path = sys.argv[1]
x, y = torch.load(path + "/expected.pt")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = forbidden
model = qk.load_packed(Net(), path).eval()
assert torch.equal(model(x), y)
assert model.again is model.mlp[0] and model.mlp[0].activation_quantizer.config == qk.LSQ(bits=4, signed=False)
print(model.conv)
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "POST(bits=4, row)" in run.stdout


def test_a_file_holds_each_tensor_once_and_no_float_weight(tmp_path):
    model = trained([("mlp.*", W4A4)])
    qk.convert_(model)
    qk.save_packed(model, tmp_path)
    weights, tensors, config = files.read(tmp_path)
    assert set(weights) == {"mlp.0", "mlp.2"}
    assert config["shared"] == {"again.bias": "mlp.0.bias", "head.weight": "embed.weight"} | {
        f"again.activation_quantizer.{key}": f"mlp.0.activation_quantizer.{key}" for key in ("step", "calibration")
    }
    assert not {"mlp.0.weight", "head.weight", "again.codes"} & set(tensors)
    assert {"conv.weight", "embed.weight", "norm.running_mean", "norm.num_batches_tracked"} <= set(tensors)


@pytest.mark.parametrize("rules", [RULES, [("mlp.0", qk.POST(bits=2))]])
def test_loading_inverts_saving(tmp_path, rules):
    model = trained(rules)
    qk.convert_(model)
    qk.save_packed(model, tmp_path)
    fresh = Net().eval()
    assert qk.load_packed(fresh, tmp_path) is fresh
    assert torch.equal(fresh(images()), model(images()))
    assert [str(m) for m in fresh.modules()] == [str(m) for m in model.modules()]
    for (name, a), b in zip(fresh.state_dict().items(), model.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b), name
    qk.save_packed(fresh, tmp_path / "again")
    assert (tmp_path / "again" / files.FILE).read_bytes() == (tmp_path / files.FILE).read_bytes()


def test_a_model_on_the_meta_device_is_filled(tmp_path):
    model = trained()
    qk.convert_(model)
    qk.save_packed(model, tmp_path)
    with torch.device("meta"):
        fresh = Net().eval()
    qk.load_packed(fresh, tmp_path)
    assert torch.equal(fresh(images()), model(images()))


def saved(path):
    model = trained()
    qk.convert_(model)
    qk.save_packed(model, path)
    return files.read(path)


def rewrite(path, change):
    weights, tensors, config = saved(path)
    change(weights, tensors, config)
    files.write(path, weights, tensors, config)


class Other(Net):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


BAD_FILES = [
    (lambda w, t, c: c.pop("layers"), "config must hold layers"),
    (lambda w, t, c: c["layers"].pop("conv"), "config must hold layers, one for each packed weight"),
    (lambda w, t, c: c["layers"]["conv"].pop("kind"), "layer 'conv' must be kind, method and activation, got "),
    (
        lambda w, t, c: c["layers"]["conv"].update(kind="os.system"),
        "layer 'conv' must be one of LutLinear, LutConv2d, got",
    ),
    (lambda w, t, c: c["layers"]["conv"].update(kind=[1]), r"layer 'conv' must be one of .*, got \[1\]"),
    (lambda w, t, c: c["layers"]["conv"].update(activation={"method": [1]}), r"method must be one of .*, got \[1\]"),
    (lambda w, t, c: c["layers"]["conv"].update(method=3), "layer 'conv': method must be a string, got 3"),
    (lambda w, t, c: c["layers"]["conv"].update(activation=3), "activation must be null or a config, got 3"),
    (lambda w, t, c: c["layers"]["conv"].update(activation={"method": "X"}), "method must be one of .*, got 'X'"),
    (lambda w, t, c: c["layers"]["conv"].update(activation={"method": "LSQ", "bits": "4"}), "LSQ: bits must be an int"),
    (lambda w, t, c: c["layers"]["conv"].update(activation={"method": "LSQ"}), "bits"),
    (lambda w, t, c: c["shared"].update({"head.bias": "nowhere"}), "shared tensor 'head.bias' must name a tensor"),
    (lambda w, t, c: t.pop("norm.weight"), "the file must have every tensor of the model, got none for norm.weight"),
    (lambda w, t, c: t.update(extra=torch.ones(1)), "the model must have every tensor of the file, got none for extra"),
    (lambda w, t, c: t.update({"norm.weight": torch.ones(3)}), r"'norm.weight' must have shape \[16\] .* got \[3\]"),
    (
        lambda w, t, c: t.update({"norm.weight": torch.ones(16).double()}),
        "must fit the model's torch.float32, got torch.float64",
    ),
    (
        lambda w, t, c: t.update({"mlp.0.activation_quantizer.calibration": torch.tensor([9], dtype=torch.uint8)}),
        "calibration must be 0, 1 or 2, got 9",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD_FILES)
def test_a_file_that_does_not_fit_is_refused_and_changes_no_layer(tmp_path, change, message):
    rewrite(tmp_path, change)
    model = Net()
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=f"(?s)model.safetensors: .*{message}"):
        qk.load_packed(model, tmp_path)
    assert [type(m) for m in model.modules()] == kinds


def test_a_model_that_does_not_fit_is_refused(tmp_path):
    saved(tmp_path)
    for model, message in (
        (nn.Sequential(nn.Linear(4, 4)), "the model must have layer 'conv', got none: another model?"),
        (
            Other(conv=nn.Conv2d(3, 8, 3)),
            r"layer 'conv': .* must have the layer's shape \[8, 3, 3, 3\], got \[16, 3, 3, 3\]",
        ),
        (Other(conv=nn.Linear(3, 8)), "layer 'conv': must be a Conv2d as in the file, got Linear"),
        (Other(more=nn.Linear(3, 8)), "got none for more.weight, more.bias: another model?"),
        (Net().half(), "must fit the model's torch.float16, got torch.float32: cast the model first"),
        (make(), "layer 'conv': must be a Conv2d as in the file, got QuantConv2d"),
    ):
        with pytest.raises(ValueError, match=message):
            qk.load_packed(model, tmp_path)
    with pytest.raises(FileNotFoundError):
        qk.load_packed(Net(), tmp_path / "nowhere")
