"""Packed layers where models go: torch.compile, autocast, torch.export; every option of a convolution."""

import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import qkernels as qk
from qkernels.nn import LutConv2d, LutLinear, QuantConv2d

from .test_nn import DTYPES, randn

ACTIVATIONS = [None, qk.LSQ(bits=4), qk.DAQ(bits=4), qk.ASQ(bits=4)]
names = [type(a).__name__ for a in ACTIVATIONS]


def mlp(activation) -> tuple[nn.Sequential, tuple[int, ...]]:
    return packed(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), activation, (64,))


def cnn(activation) -> tuple[nn.Sequential, tuple[int, ...]]:
    """With a padding of its own, depthwise and 1x1 layers."""
    layers = (
        nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, dilation=2, groups=8), nn.ReLU(), nn.Conv2d(16, 4, 1),
    )  # fmt: skip
    return packed(nn.Sequential(*layers), activation, (3, 8, 8))


def packed(model: nn.Sequential, activation, shape: tuple[int, ...]) -> tuple[nn.Sequential, tuple[int, ...]]:
    qk.prepare_(model, [("*", (qk.LSQ(bits=4, granularity="row"), activation))])
    model(randn(4, *shape))
    qk.convert_(model)
    return model.eval(), shape


MODELS = pytest.mark.parametrize("make", [mlp, cnn])


@MODELS
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=names)
def test_one_graph_serves_any_batch_with_gradients(make, activation):
    model, shape = make(activation)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=graphs)
    counts = set()
    for batch in (2, 3, 5, 8, 13):
        x = randn(batch, *shape, seed=batch)
        results = []
        for call in (compiled, twin):
            own = x.clone().requires_grad_()
            y = call(own)
            y.square().sum().backward()
            results.append((y, own.grad))
        torch.testing.assert_close(*results)
        counts.add(graphs.frame_count)
    assert len(counts) == 1, "no batch compiles anew"
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4, msg=name)
    with torch.no_grad():
        assert torch.equal(compiled(x), twin(x))


def test_inductor_compiles_packed_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect"), nn.Flatten(), nn.Linear(512, 8))
    model, shape = packed(model, qk.LSQ(bits=4), (3, 8, 8))
    x = randn(5, *shape)
    torch._dynamo.reset()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # Inductor's own
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x))


@MODELS
@pytest.mark.parametrize("activation", [None, qk.LSQ(bits=8)], ids=["float", "quantized"])
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_is_that_of_the_plain_layers(make, activation, compiled):
    """y in bfloat16, as near to float32 as torch's own layers with the same weights are."""
    model, shape = make(activation)
    x = randn(5, *shape)
    exact = model(x)
    torch._dynamo.reset()
    call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
    with torch.autocast("cpu", torch.bfloat16):
        y = call(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16 and all(p.grad.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(y.float(), exact, rtol=0, atol=0.04 * exact.abs().max().item())


@MODELS
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=names)
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_layer_chooses_its_backend_when_it_runs(make, activation, strict, monkeypatch):
    """Saved and loaded, for any batch, with parameters that could train; to the bit."""
    model, shape = make(activation)
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    exported = torch.export.export(model, (randn(4, *shape),), dynamic_shapes=(batch,), strict=strict)
    ours = [node for node in exported.graph.nodes if str(node.target).startswith("qkernels")]
    layers = sum(isinstance(m, (LutLinear, LutConv2d)) for m in model.modules())
    assert len(ours) == layers * (1 if activation is None else 2)
    assert all(node.args[-1] == "auto" for node in ours)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for count in (1, 2, 7, 600):  # more than 512 rows meet another kernel
        x = randn(count, *shape, seed=count)
        assert torch.equal(loaded(x), model(x))
    monkeypatch.setenv("QKERNELS_BACKEND", "reference")
    torch.testing.assert_close(loaded(x), model(x))
    monkeypatch.setenv("QKERNELS_BACKEND", "abacus")
    with pytest.raises(NotImplementedError, match="QKERNELS_BACKEND='abacus' cannot run: no such backend"):
        loaded(x)


KERNELS = [
    dict(kernel_size=1, padding=1),  # without, it may be a matmul
    dict(kernel_size=(1, 5), padding=(0, 2)),
    dict(kernel_size=(5, 2), stride=(3, 1), padding=(1, 2)),
    dict(kernel_size=(7, 7), padding=3),
    dict(kernel_size=3, padding="same", dilation=(1, 3)),
    dict(kernel_size=(3, 5), padding="same", padding_mode="replicate"),
    dict(kernel_size=2, padding="valid", stride=3),
    dict(kernel_size=3, padding=2, dilation=2, padding_mode="circular", stride=2),
    dict(kernel_size=3, padding=(2, 0), padding_mode="reflect"),
    dict(kernel_size=3, groups=4),
    dict(kernel_size=(3, 1), groups=12, padding=1, stride=2),  # depthwise
    dict(kernel_size=3, groups=12, padding="same", dilation=2, padding_mode="reflect"),
    dict(kernel_size=1, groups=12),
]


@pytest.mark.parametrize("options", KERNELS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_convolution_is_torchs_with_the_dequantized_weight(options, dtype):
    """Depthwise layers have two channels out for each in. Forward and gradients to the bit, batched or not."""
    torch.manual_seed(0)
    plain = nn.Conv2d(12, 24, **options).to(dtype)
    layer = LutConv2d.from_quant(QuantConv2d(plain, weight=qk.POST(bits=3)))
    twin = nn.Conv2d(12, 24, **options).to(dtype)
    with torch.no_grad():
        twin.weight.copy_(layer.weight_lut.dequantize(dtype))
        twin.bias.copy_(layer.bias)
    for shape in ((2, 12, 11, 10), (12, 9, 9)):
        x = randn(*shape).to(dtype)
        results = []
        for conv in (layer, twin):
            own = x.clone().requires_grad_()
            y = conv(own)
            results += [y, torch.autograd.grad(y, own, torch.ones_like(y))[0]]
        assert torch.equal(results[0], results[2]) and torch.equal(results[1], results[3])
    if options.get("padding_mode", "zeros") == "zeros":
        kernel = {key: value for key, value in options.items() if key != "kernel_size"}
        assert torch.equal(qk.lut_conv2d(x, layer.weight_lut, layer.bias, **kernel), results[2])


def test_a_convolution_of_no_images_gives_none():
    layer = LutConv2d.from_quant(QuantConv2d(nn.Conv2d(4, 6, 3), weight=qk.LSQ(bits=4)))
    assert layer(torch.zeros(0, 4, 8, 8)).shape == F.conv2d(torch.zeros(0, 4, 8, 8), torch.zeros(6, 4, 3, 3)).shape
