"""A frozen packed layer with an update of low rank that trains (LoRA)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qkernels as qk
from qkernels.nn import LutLinear, QuantLinear
from qkernels.pack import PLANES

from .test_nn import DTYPES, randn

METHODS = {
    1: qk.POST(bits=1, grid="nozero"),
    2: qk.LSQ(bits=2),
    3: qk.POST(bits=3),
    4: qk.LSQ(bits=4),
    8: qk.LSQ(bits=8),
}


class Adapted(nn.Module):
    def __init__(self, layer: nn.Module, rank: int = 4) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        dtype = layer.bias.dtype
        self.a = nn.Parameter((randn(rank, layer.in_features, seed=3) * layer.in_features**-0.5).to(dtype))
        self.b = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + x @ self.a.T @ self.b.T


class Dense(nn.Module):
    """The same layer with its weight as plain floats."""

    def __init__(self, layer: LutLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight = nn.Parameter(layer.weight_lut.dequantize(layer.bias.dtype))
        self.bias = nn.Parameter(layer.bias.detach().clone())
        self.quantizer = layer.activation_quantizer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x if self.quantizer is None else self.quantizer(x), self.weight, self.bias)


def make(bits: int = 4, activation=None, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, nn.Sequential]:
    """Two adapted packed layers, and the same with plain weights."""
    torch.manual_seed(0)
    layers = []
    for k, n in ((64, 48), (48, 10)):
        layer = QuantLinear(nn.Linear(k, n).to(dtype), weight=METHODS[bits], activation=activation)
        layer(randn(8, k, seed=4).to(dtype))
        layers.append(LutLinear.from_quant(layer))
    return tuple(nn.Sequential(*(Adapted(of(layer)) for layer in layers)) for of in (copy.deepcopy, Dense))


def frozen(model: nn.Module) -> dict[str, bytes]:
    """The bytes of everything that must not change."""
    state = {name: t for name, t in model.state_dict().items() if ".layer." in name}
    return {name: bytes(t.contiguous().view(torch.uint8).numpy()) for name, t in state.items()}


def train(model: nn.Module, call, steps: int = 30) -> list[float]:
    x, y = randn(64, 64, seed=1), torch.randint(0, 10, (64,), generator=torch.Generator().manual_seed(2))
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert len(parameters) == 4, "a and b of two layers"
    optimizer, losses = torch.optim.Adam(parameters, lr=2e-2), []
    for _ in range(steps):
        loss = F.cross_entropy(call(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("activation", [None, qk.LSQ(bits=8)], ids=["float", "quantized"])
@pytest.mark.parametrize("bits", tuple(PLANES))
def test_an_adapter_learns_and_the_packed_bytes_stay(bits, activation):
    model, plain = make(bits, activation)
    before = frozen(model)
    losses = train(model, model)
    assert losses[-1] < 0.2 * losses[0]
    assert frozen(model) == before and {"0.layer.codes", "0.layer.levels", "0.layer.scale"} <= set(before)
    assert all(p.grad is None for name, p in model.named_parameters() if ".layer." in name)
    if activation is None:  # else a rounding of the first layer's sums may move a code
        torch.testing.assert_close(torch.tensor(losses[:10]), torch.tensor(train(plain, plain, 10)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradients_are_those_of_plain_weights(dtype):
    """Of x and both factors; a low precision one may differ in what it rounds on the way."""
    model, plain = make(dtype=dtype)
    grads = []
    for m in (model, plain):
        with torch.no_grad():
            m[0].b.copy_(randn(48, 4, seed=5) * 0.1)
            m[1].b.copy_(randn(10, 4, seed=6) * 0.1)
        x = randn(5, 64).to(dtype).requires_grad_()
        grads.append(torch.autograd.grad(m(x).float().square().sum(), [x, m[0].a, m[0].b, m[1].a, m[1].b]))
    for got, want in zip(*grads, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want, rtol=0, atol=8 * torch.finfo(dtype).eps * want.abs().max().item())


def test_it_trains_compiled_whole_as_it_does_eagerly():
    model, _ = make(activation=qk.LSQ(bits=8))
    twin, before = copy.deepcopy(model), frozen(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(torch.tensor(train(model, compiled, 10)), torch.tensor(train(twin, twin, 10)))
    assert frozen(model) == before


@pytest.mark.parametrize("compiled", [False, True])
def test_it_trains_under_autocast(compiled):
    model, _ = make()
    before = frozen(model)
    torch._dynamo.reset()
    call = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model

    def cast(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = call(x)
        assert y.dtype == torch.bfloat16
        return y

    losses = train(model, cast)
    assert losses[-1] < 0.2 * losses[0] and frozen(model) == before
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
