"""Layers whose weights carry gates: when they draw, what is recomputed, what they learn and how it is packed."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import qkernels as qk
from qkernels.testing.compare import value_and_grads

from .test_dropbits import randn


def layer(dropbits="bitwise", bits=4, **options):
    torch.manual_seed(0)
    return qk.nn.QuantLinear.from_float(nn.Linear(64, 24), weight=qk.CPQ(bits=bits, dropbits=dropbits, **options))


def set_logits(quantizer, values):
    with torch.no_grad():
        quantizer.logits.copy_(torch.tensor(values))


def grads(model, call, x):
    model.zero_grad()
    call(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_a_layer_draws_gates_once_a_step_and_none_in_eval_mode():
    model, x = layer(), randn(3, 64)
    quantizer = model.weight_quantizer
    assert isinstance(quantizer, qk.nn.DropBitsQuantizer) and quantizer.logits.shape == (3,)
    first = model(x)
    assert torch.equal(model(x), first), "calls of one step share their gates"
    grads(model, model, x)
    seen = [quantizer.gates() for _ in range(1)]
    for _ in range(6):
        grads(model, model, x)
        seen.append(quantizer.gates())
    assert len({tuple(gates.tolist()) for gates in seen}) == 7, "each step draws anew"
    model.eval()
    before = quantizer.draws.clone()
    assert torch.equal(model(x), model(x)) and torch.equal(quantizer.draws, before)
    want = qk.cpq(
        model.weight,
        quantizer.step,
        quantizer.sigma,
        qk.hard_concrete(quantizer.logits, seed=0, training=False),
        bits=4,
    )
    assert torch.equal(quantizer(model.weight), want)


def test_a_resumed_run_draws_what_the_first_would_have_drawn():
    def steps(model, count):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for _ in range(count):
            grads(model, model, randn(3, 64))
            optimizer.step()

    straight, first, second = layer(), layer(), layer()
    steps(straight, 5)
    steps(first, 3)
    second.load_state_dict(first.state_dict())
    steps(second, 2)
    for a, b in zip(straight.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_with_the_same_gates(reentrant):
    x = randn(3, 64).requires_grad_()
    plain, twin = layer(), layer()
    want = grads(plain, lambda x: plain(x) + plain(2 * x), x)

    def call(x):
        return checkpoint(twin, x, use_reentrant=reentrant) + checkpoint(twin, 2 * x, use_reentrant=reentrant)

    for a, b in zip(want, grads(twin, call, x), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(plain.weight_quantizer.draws, twin.weight_quantizer.draws)


FROZEN = [(), ("logits",), ("weight", "bias"), ("step", "sigma", "logits")]


@pytest.mark.parametrize("frozen", FROZEN, ids=lambda names: " ".join(names) or "nothing frozen")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("outer", ["checkpoint", "compile", "eager"])
def test_a_compiled_graph_recomputes_with_the_same_gates(outer, reentrant, frozen):
    """A graph in a checkpoint, or a checkpoint in a graph; four calls of the layer before the first backward."""
    torch._dynamo.reset()
    x = randn(3, 64).requires_grad_()
    plain, twin = layer(), layer()
    for model in (plain, twin):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[2] not in frozen)
    inner = torch.compile(twin, fullgraph=True, backend="aot_eager") if outer == "checkpoint" else twin

    def twice(x):
        return checkpoint(inner, x, use_reentrant=reentrant) + checkpoint(inner, 2 * x, use_reentrant=reentrant)

    if outer == "compile":
        twice = torch.compile(twice, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        want = interleaved(plain, lambda x: plain(x) + plain(2 * x), x)
        for a, b in zip(want, interleaved(twin, twice, x), strict=True):
            torch.testing.assert_close(a, b)
        assert torch.equal(plain.weight_quantizer.draws, twin.weight_quantizer.draws)


def interleaved(model, call, x):
    """The gradients of two calls whose backwards come after both, in the other order."""
    model.zero_grad()
    first, second = call(x), call(3 * x)
    second.square().sum().backward()
    first.square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


def test_a_checkpoint_compiled_by_inductor_recomputes_with_the_same_gates():
    torch._dynamo.reset()
    x, plain, twin = randn(3, 64).requires_grad_(), layer(), layer()
    call = torch.compile(lambda x: checkpoint(twin, x, use_reentrant=False), fullgraph=True)
    for _ in range(2):
        for a, b in zip(interleaved(plain, plain, x), interleaved(twin, call, x), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("assign", [False, True])
def test_a_model_from_the_meta_device_draws_on(assign):
    first = layer()
    for _ in range(2):
        grads(first, first, randn(3, 64))
    second = layer().to("meta")
    if not assign:
        second = second.to_empty(device="cpu")
    second.load_state_dict(first.state_dict(), assign=assign)
    for model in (first, second):
        model.weight_quantizer.gates()
    assert torch.equal(first.weight_quantizer.draws, second.weight_quantizer.draws)


def test_torch_func_goes_through_a_layer_that_draws():
    x, twin = randn(3, 64), layer()
    want = grads(twin, twin, x)
    for each in (False, True):  # the gradient of the sum, and the sum of the gradients of each row
        model = layer()
        parameters = dict(model.named_parameters())

        def loss(p, x, model=model):
            return torch.func.functional_call(model, p, (x,)).square().sum()

        grad = torch.func.grad(loss)
        got = torch.func.vmap(grad, in_dims=(None, 0))(parameters, x[:, None]) if each else grad(parameters, x)
        for a, b in zip(got.values(), want, strict=True):
            torch.testing.assert_close(a.sum(0) if each else a, b)


@pytest.mark.parametrize("dropbits", ["bitwise", "endpoints"])
def test_a_compiled_layer_draws_and_learns_as_an_eager_one(dropbits):
    """Through Inductor, whose backward may compute once more what the forward has: also what it drew."""
    torch._dynamo.reset()
    plain, twin, x = layer(dropbits), layer(dropbits), randn(3, 64)
    compiled = torch.compile(twin, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(4):
            want, got = grads(plain, plain, x), grads(twin, compiled, x)
            assert torch.equal(plain.weight_quantizer.draws, twin.weight_quantizer.draws)
            for a, b in zip(want, got, strict=True):
                torch.testing.assert_close(b, a)
    for _ in range(2):  # in eval mode another graph, without draws
        torch.testing.assert_close(compiled.eval()(x), plain.eval()(x))
    assert torch.equal(plain.weight_quantizer.draws, twin.weight_quantizer.draws)


def test_layers_draw_differently_and_runs_alike():
    assert torch.equal(layer().weight_quantizer.draws, layer().weight_quantizer.draws)
    torch.manual_seed(1)
    other = qk.nn.QuantLinear.from_float(nn.Linear(64, 24), weight=qk.CPQ(bits=4, dropbits="bitwise"))
    assert not torch.equal(layer().weight_quantizer.draws, other.weight_quantizer.draws)


@pytest.mark.parametrize(
    "dropbits, logits, bits",
    [
        ("bitwise", [3.0, 3.0, 3.0], 4),
        ("bitwise", [3.0, 3.0, -5.0], 3),
        ("bitwise", [3.0, -5.0, 0.0], 4),
        ("bitwise", [0.1, -5.0, -5.0], 2),
        ("bitwise", [-5.0, -5.0, -5.0], 1),
        ("endpoints", [3.0, 1.0, 1.0, 1.0, -5.0, -5.0, -5.0], 4),
        ("endpoints", [3.0, 1.0, 1.0, -5.0, -5.0, -5.0, -5.0], 3),
        ("endpoints", [-5.0] * 7, 1),
    ],
)
def test_a_layer_is_packed_at_the_width_it_learned(dropbits, logits, bits):
    model = nn.Sequential(layer(dropbits))
    set_logits(model[0].weight_quantizer, logits)
    trained = model[0].eval().weight_quantizer(model[0].weight).detach()
    assert model[0].weight_quantizer.effective_bits == bits
    assert f"{bits} bits kept" in repr(model)
    model.train()
    report = qk.convert_(model)
    assert report.layers[0].bits == report.layers[0].stored_bits == bits and report.exact
    assert torch.equal(model[0].weight_lut.dequantize(), trained)


def test_packing_leaves_the_mode_and_the_draws_alone():
    model = layer()
    before = model.weight_quantizer.draws.clone()
    qk.nn.LutLinear.from_quant(model)
    assert model.weight_quantizer.training and torch.equal(model.weight_quantizer.draws, before)


def test_the_penalty_of_a_model_is_the_sum_over_its_layers():
    model = nn.Sequential(layer(penalty=0.5), layer(penalty=0.25), nn.Linear(24, 24))
    want = sum(m.weight_quantizer.config.penalty * qk.bit_penalty(m.weight_quantizer.logits) for m in model[:2])
    torch.testing.assert_close(qk.penalty(model), want)
    assert qk.penalty(nn.Linear(2, 2)).item() == 0
    qk.penalty(model).backward()
    assert (model[0].weight_quantizer.logits.grad > 0).all()


def test_training_with_a_penalty_drops_levels():
    """A weight of two magnitudes needs no outer level: its gates close, and the layer is packed narrower."""
    torch.manual_seed(0)
    linear = nn.Linear(64, 24)
    model = nn.Sequential(qk.nn.QuantLinear.from_float(linear, weight=qk.CPQ(bits=4, dropbits="bitwise", penalty=1.0)))
    quantizer = model[0].weight_quantizer
    optimizer = torch.optim.Adam([quantizer.logits], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (1e-3 * model(randn(8, 64)).square().mean() + qk.penalty(model)).backward()
        optimizer.step()
    assert quantizer.effective_bits == 1
    assert qk.convert_(model).layers[0].bits == 1


def test_logits_and_sigma_are_held_in_range_and_come_back():
    model = layer()
    quantizer = model.weight_quantizer
    set_logits(quantizer, [30.0, -30.0, 0.0])
    torch.testing.assert_close(
        quantizer.penalty() + qk.bit_penalty(torch.tensor([100.0, 0.01, 1.0]).log()),
        qk.bit_penalty(quantizer._logits()),
    )
    (grad,) = torch.autograd.grad(quantizer._logits().sum(), quantizer.logits)
    assert grad.tolist() == [1, 0, 1], "a descent on + leads back from above only"
    config = qk.CPQ(bits=4, signed=True)
    w, step = randn(1000), torch.tensor([0.2])
    for sigma, rho in ((0.001, 20.0), (1.0, 0.5), (0.05, 4.0)):
        _, got, g = value_and_grads(config.quantize, (w, step, torch.tensor([sigma])), {})
        _, want, _ = value_and_grads(qk.cpq, (w, step, step / rho), dict(bits=4), g=g)
        for a, b in zip(got[:2], want[:2], strict=True):
            torch.testing.assert_close(a, b)
        outward = (sigma < 0.2 / 20 and want[2] > 0) or (sigma > 0.2 / 0.5 and want[2] < 0)
        torch.testing.assert_close(got[2], torch.zeros(1) if outward else want[2])
