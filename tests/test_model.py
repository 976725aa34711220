"""Whole models: plan, prepare, calibrate, train, convert, and all the way to a loaded file."""

import copy
import io
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qkernels as qk
from qkernels import methods
from qkernels.nn import LutConv2d, LutLinear, QuantConv2d, QuantLinear, quantizers

from .models import RULES, W4A4, Net, images, make, trained


@pytest.fixture
def reference(monkeypatch):
    """Every sum in the same order, packed or not: outputs can be compared to the bit."""
    monkeypatch.setenv("QKERNELS_BACKEND", "reference")


def rows(plan: qk.Plan) -> dict[str, str | None]:
    return {layer.name: layer.reason for layer in plan.layers}


# plan


def test_the_first_rule_that_fits_wins_and_every_other_layer_says_why_not():
    plan = qk.plan(
        make([]),
        [
            ("mlp.2", None),
            (lambda name, module: name == "again", qk.LSQ(bits=3)),
            (nn.Conv2d, qk.POST(bits=2)),
            ("*", W4A4),
        ],
        skip=["head"],
    )
    assert rows(plan) == {
        "conv": None,
        "mlp.0": None,
        "mlp.2": "rule 'mlp.2': None",
        "embed": "Embedding has no quantized form (Linear and Conv2d have)",
        "head": "skip: 'head'",
    }
    methods_of = {layer.name: (layer.weight, layer.activation) for layer in plan.quantized}
    assert methods_of == {"conv": (qk.POST(bits=2), None), "mlp.0": (qk.LSQ(bits=3), None)}, (
        "mlp.0 is also called again"
    )
    assert [layer.name for layer in plan.skipped] == ["mlp.2", "embed", "head"]
    assert plan.unmatched == ("rule '*'",), "the layers it fits are taken"


def test_a_plan_prints_as_a_table():
    text = str(qk.plan(make([]), [*RULES[:2], ("nothing.*", qk.LSQ(bits=4))], skip=["head", "lm_head"]))
    head, rule, *lines = text.splitlines()
    assert head.split() == ["layer", "kind", "shape", "method", "bits", "bytes", "before", "after", "note"]
    assert set(rule) == {"-", " "}
    assert re.search(r"conv +Conv2d +16 x 3 x 3 x 3 +POST\(bits=4, row\) +4 +1,728 +[\d,]+", text)
    assert "LSQ(bits=4, row), input LSQ(bits=4, tensor)" in text
    assert re.search(r"head +Linear +10 x 32 +- +- +1,280 +- +skip: 'head'", text)
    assert "3 of 5 layers quantized, " in text
    assert "note: skip 'lm_head' fits no layer" in lines and "note: rule 'nothing.*' fits no layer" in lines
    wide = str(qk.plan(make([]), [(nn.Linear, qk.LSQ(bits=6)), (nn.Conv2d, qk.POST(bits=4, grid="release"))]))
    assert "64 levels: stored in 8 bits" in wide and "17 levels: stored in 8 bits" in wide


def test_the_bytes_a_plan_forecasts_are_the_bytes_of_the_report():
    for granularity in ("tensor", "row", 32):
        model = Net()
        rules = [(nn.Linear, qk.LSQ(bits=3, granularity=granularity)), (nn.Conv2d, qk.POST(bits=5))]
        plan = qk.prepare_(model, rules)
        report = qk.convert_(model)
        want = {layer.name: (layer.bytes_before, layer.bytes_after) for layer in report.layers}
        assert {layer.name: (layer.bytes_before, layer.bytes_after) for layer in plan.quantized} == want


def test_layers_that_torch_uses_without_calling_them_are_left_alone():
    encoder = nn.TransformerEncoderLayer(32, 4, dim_feedforward=64, batch_first=True)
    plan = qk.plan(nn.Sequential(encoder, nn.Linear(32, 32)), [("*", qk.LSQ(bits=4))])
    why = rows(plan)
    assert why["0.self_attn.out_proj"] == "must be exactly nn.Linear, got NonDynamicallyQuantizableLinear"
    assert "fast path" in why["0.linear1"] and "fast path" in why["0.linear2"]
    assert why["0.self_attn"].startswith("MultiheadAttention has no quantized form") and why["1"] is None


def test_layers_without_a_plain_float_weight_are_listed():
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.ModuleDict({"norm": weight_norm, "meta": nn.Linear(4, 4, device="meta"), "conv": nn.Conv1d(1, 1, 3)})
    why = rows(qk.plan(model, [("*", qk.LSQ(bits=4))]))
    assert why["norm"] == "must be exactly nn.Linear, got ParametrizedLinear"
    assert why["meta"] == "its weight is on the meta device: load it first"
    assert why["conv"] == "Conv1d has no quantized form (Linear and Conv2d have)"


# prepare


def test_prepare_keeps_tensors_keys_and_mode_and_puts_one_layer_in_every_place():
    model = make([]).eval()
    before = dict(model.named_parameters(remove_duplicate=False))
    plan = qk.prepare_(model, qk.plan(model, RULES))
    assert isinstance(plan, qk.Plan)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[name] is p for name, p in before.items())
    assert (
        isinstance(model.conv, QuantConv2d)
        and isinstance(model.mlp[0], QuantLinear)
        and type(model.embed) is nn.Embedding
    )
    assert model.again is model.mlp[0], "a layer registered twice stays one layer"
    assert model.head.weight is model.embed.weight, "tied weights stay tied"
    assert not any(module.training for module in model.modules())
    model.load_state_dict(Net().state_dict(), strict=False)  # a float checkpoint still fits


def test_prepare_again_takes_what_is_left():
    model = make([("mlp.*", W4A4)])
    layer = model.mlp[0]
    plan = qk.prepare_(model, [("*", qk.LSQ(bits=8))])
    assert rows(plan)["mlp.0"] == rows(plan)["mlp.2"] == "quantized already"
    assert model.mlp[0] is layer and isinstance(model.conv, QuantConv2d)
    qk.calibrate(model, images())
    qk.convert_(model)
    assert rows(qk.plan(model, [("*", qk.LSQ(bits=8))]))["mlp.0"] == "packed already"


def test_an_error_leaves_the_model_as_it_was():
    model = make([])
    model.head.weight.data[0, 0] = torch.nan
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="prepare_: layer 'head': LSQ: the tensor to calibrate on must be finite"):
        qk.prepare_(model, RULES)
    assert [type(m) for m in model.modules()] == kinds
    model = trained()
    model.mlp[2].weight.data[0, 0] = torch.inf
    kinds = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=r"convert_: layer 'mlp.2': its weight must be finite"):
        qk.convert_(model)
    assert [type(m) for m in model.modules()] == kinds


# calibrate


def test_calibrate_reaches_every_activation_quantizer_and_touches_nothing_else():
    model = make().train()
    model.mlp.insert(1, nn.Dropout(0.5))
    model.norm.eval()
    before = {name: t.clone() for name, t in model.state_dict().items() if "activation_quantizer" not in name}
    state = torch.get_rng_state()
    assert qk.calibrate(model, images()) == ["mlp.0.activation_quantizer", "mlp.3.activation_quantizer"]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.mlp.training and not model.norm.training
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert qk.calibrate(model, images(seed=5)) == [], "what is calibrated stays"


def test_calibrate_gives_what_the_first_batch_gives():
    model, twin = make().eval(), make().eval()
    qk.calibrate(model, images())
    twin(images())
    for (name, a), b in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_calibrate_takes_several_arguments_or_names():
    model, twin = make(), make()
    qk.calibrate(model, images(), 3.0)
    qk.calibrate(twin, {"scale": 3.0, "x": images()})
    steps = [q.step for _, q in quantizers(model) if hasattr(q, "step")]
    assert all(
        torch.equal(a, b)
        for a, b in zip(steps, (q.step for _, q in quantizers(twin) if hasattr(q, "step")), strict=True)
    )


def test_calibrate_names_what_the_batch_does_not_reach():
    model = make()
    model.lonely = QuantLinear.from_float(nn.Linear(4, 4), weight=qk.LSQ(bits=4), activation=qk.LSQ(bits=4))
    with pytest.raises(ValueError, match="calibrate: the batch must reach .* not so lonely.activation_quantizer"):
        qk.calibrate(model, images())
    with pytest.raises(ValueError, match="layer 'lonely': its activation quantizer is not calibrated"):
        qk.convert_(model)


# training


def test_param_groups_spare_quantizers_from_weight_decay():
    model = make()
    model.norm.weight.requires_grad_(False)
    groups = qk.param_groups(model, lr=0.1, quantizer_lr=0.01, weight_decay=0.5)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(0.1, 0.5), (0.01, 0.0)]
    names = {id(p): name for name, p in model.named_parameters()}
    got = [{names[id(p)] for p in g["params"]} for g in groups]
    assert got[1] == {name for name in names.values() if "_quantizer." in name} and len(got[1]) == 6
    assert got[0] | got[1] == set(names.values()) - {"norm.weight"} and not got[0] & got[1]
    assert qk.param_groups(make(), lr=0.1)[1]["lr"] == 0.1
    assert len(qk.param_groups(Net(), lr=0.1)) == 1
    torch.optim.SGD(groups)


def test_quantized_training_learns_what_rounding_loses():
    """2-bit weights: trained quantized, the net fits a teacher better than the rounded float net does."""
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    y = torch.stack([x[:, :4].prod(1).tanh(), x[:, 1] * x[:, 2], x[:, 3].sin(), x.mean(1)], 1)

    def fit(model, groups, steps):
        optimizer = torch.optim.Adam(groups)
        for _ in range(steps):
            loss = F.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return F.mse_loss(model(x), y).item()

    fit(model, qk.param_groups(model, lr=1e-2), 300)
    for config in (qk.LSQ(bits=2, granularity="row"), qk.POST(bits=2)):
        quant = copy.deepcopy(model)
        qk.prepare_(quant, [("*", config)])
        rounded = F.mse_loss(quant(x), y).item()
        assert fit(quant, qk.param_groups(quant, lr=1e-3), 150) < 0.5 * rounded
        assert all((p > 0).all() for _, q in quantizers(quant) for p in q.parameters())


# convert


def test_convert_changes_no_output_and_reports_every_layer(reference):
    model = trained()
    x = images(9, seed=7)
    weights = {
        name: m.weight.detach().clone()
        for name, m in model.named_modules()
        if isinstance(m, (QuantLinear, QuantConv2d))
    }
    values = {name: model.get_submodule(name).weight_quantizer(w).detach() for name, w in weights.items()}
    y = model(x)
    report = qk.convert_(model)
    assert torch.equal(model(x), y)
    assert [layer.name for layer in report.layers] == list(weights) == ["conv", "mlp.0", "mlp.2", "head"]
    assert model.again is model.mlp[0] and isinstance(model.again, LutLinear) and isinstance(model.conv, LutConv2d)
    for layer in report.layers:
        packed = model.get_submodule(layer.name).weight_lut
        w, q = weights[layer.name], values[layer.name]
        assert layer.exact and torch.equal(packed.dequantize(), q)
        assert layer.max_error == (q - w).abs().max().item()
        assert math.isclose(layer.sqnr_db, 10 * math.log10(w.double().square().sum() / (q - w).double().square().sum()))
        assert (layer.bytes_before, layer.bytes_after) == (w.nbytes, packed.nbytes)
        assert layer.bits_per_weight == packed.bits_per_weight and layer.shape == tuple(w.shape)
    assert report.exact and report.bytes_after == sum(layer.bytes_after for layer in report.layers)
    assert report.bits_per_weight == 8 * report.bytes_after / sum(w.numel() for w in weights.values())
    assert report.max_error == max(layer.max_error for layer in report.layers)
    assert not any("weight_quantizer" in name for name, _ in model.named_modules())
    text = str(report)
    assert text.splitlines()[0].split("  ")[0] == "layer" and text.count(" yes") == 4
    assert f"4 layers packed, {report.bits_per_weight:.2f} bits/weight" in text


def test_a_width_without_packed_form_goes_one_up_and_is_reported():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    qk.prepare_(model, [("0", qk.LSQ(bits=5)), ("1", qk.POST(bits=3, grid="release"))])
    report = qk.convert_(model)
    assert [(layer.bits, layer.stored_bits) for layer in report.layers] == [(5, 8), (3, 4)]
    assert "5 in 8" in str(report) and "3 in 4" in str(report)


def test_weights_without_error_or_signal_have_a_ratio_too():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.data = torch.tensor([[-2.0, -1.0, 0.0, 1.0]] * 4)
    model[1].weight.data.zero_()
    qk.prepare_(model, [("*", qk.LSQ(bits=2))])
    model[0].weight_quantizer.step.data.fill_(1.0)
    assert [layer.sqnr_db for layer in qk.convert_(model).layers] == [math.inf, math.inf]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_low_precision_model_packs_exactly(dtype):
    model = make([]).to(dtype)
    qk.prepare_(model, RULES)
    qk.calibrate(model, images().to(dtype))
    weight = model.mlp[2].weight_quantizer(model.mlp[2].weight)
    assert qk.convert_(model).exact
    assert torch.equal(model.mlp[2].weight_lut.dequantize(dtype), weight)
    assert model(images().to(dtype)).dtype == dtype


def test_a_merged_adapter_converts(reference):
    """LoRA merged into the weight is a plain edit of it: the layer and its quantizer stay."""
    model = trained()
    with torch.no_grad():
        model.mlp[2].weight += 0.05 * torch.randn(64, 4) @ torch.randn(4, 32)
    y = model(images())
    qk.convert_(model)
    assert torch.equal(model(images()), y)


def test_a_converted_model_exports():
    model = trained()
    qk.convert_(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (images(),), dynamic_shapes=({0: batch},))
    linears = [n for n in exported.graph.nodes if n.target is torch.ops.qkernels.lut_linear.default]
    assert len(linears) == 4 and {n.args[-1] for n in linears} == {"auto"}
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for count in (6, 2, 11):
        assert torch.equal(loaded(images(count)), model(images(count)))


def test_every_method_goes_the_whole_way(tmp_path):
    """What is registered needs no word anywhere else: plan, prepare, train, convert, save, load."""
    for name, method in methods.METHODS.items():
        for bits in (2, 3, 4):
            model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
            qk.prepare_(model, [("*", method(bits=bits))])
            model(torch.randn(3, 16)).sum().backward()
            qk.convert_(model)
            qk.save_packed(model, tmp_path / name)
            fresh = qk.load_packed(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)), tmp_path / name)
            x = torch.randn(3, 16)
            assert torch.equal(fresh(x), model(x))
            assert json.dumps(methods.to_dict(method(bits=bits)))
