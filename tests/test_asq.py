"""ASQ's laws, and its adapter: it starts as LSQ, learns, survives what modules meet, and can be frozen."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import qkernels as qk
from qkernels.methods import from_dict, to_dict
from qkernels.nn import AdaptiveStep, QuantConv2d, Quantizer, QuantLinear, freeze_steps_
from qkernels.ops.asq.reference import LEAST
from qkernels.testing.compare import assert_same_bits, value_and_grads

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adaptive(channels: int = 16, dim: int = -3, dtype: torch.dtype = torch.float32, **options) -> AdaptiveStep:
    torch.manual_seed(0)
    return AdaptiveStep(qk.ASQ(bits=4, **options), channels, dim, dtype=dtype)


# the function


@pytest.mark.parametrize("signed", [True, False])
def test_its_gradients_have_the_closed_form_of_the_release(signed):
    """D = sum g e of a sample; dstep = kappa sum beta D, dbeta = step D without kappa, dx = g inside."""
    x, kappa = randn(5, 300), 0.125
    step, beta = torch.tensor([0.2]), torch.tensor([0.5, 1.0, 1.5, 0.8, 2.0])
    y, (dx, ds, db), g = value_and_grads(qk.asq, (x, step, beta), dict(bits=3, signed=signed, grad_scale=kappa))
    low, high = (-4, 3) if signed else (0, 7)
    s = (step * beta)[:, None]
    v = x / s
    inside = (v >= low) & (v <= high)
    code = v.clamp(low, high).round()
    assert torch.equal(y, code * s + 0.0) and torch.equal(dx, g * inside)
    D = (g.double() * torch.where(inside, code - v, code).double()).sum(1)
    near = 300 * 2.0**-24 * 8
    torch.testing.assert_close(db.double(), step.double() * D, rtol=1e-5, atol=near)
    torch.testing.assert_close(ds.double(), kappa * (beta.double() * D).sum().reshape(1), rtol=1e-5, atol=near)


def test_beta_of_one_is_lsq():
    x, step = randn(4, 64), torch.tensor([0.3])
    got = value_and_grads(qk.asq, (x, step, torch.ones(4)), dict(bits=4))
    want = value_and_grads(qk.lsq, (x, step), dict(bits=4, signed=False))
    assert_same_bits(got[0], want[0], "y")
    assert_same_bits(got[1][0], want[1][0], "dx")
    torch.testing.assert_close(got[1][1], want[1][1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dead_adapters_beta_gives_no_nan(dtype):
    """In float16 step * 1e-8 is 0, and 0 / 0 is NaN at x = 0; also where the product is too small for float32."""
    x = torch.tensor([[0.0, 1.0, -1.0, 3.0]]).to(dtype)
    for step in (0.1, 1e-30, 1e-38):
        y = qk.asq(x, torch.tensor([step]), torch.tensor([1e-8]), bits=4)
        assert y.isfinite().all() and (y <= 15 * max(step * 1e-8, LEAST)).all() and y[0, 0] == 0


# the adapter


@pytest.mark.parametrize("channels", [3, 7, 8, 16, 64])
def test_the_adapter_is_that_of_the_release(channels):
    q = adaptive(channels)
    hidden = channels // 4
    shapes = [(1, channels)] if channels < 8 else [(hidden, channels), (1, hidden)]
    linears = [m for m in q.adapter if isinstance(m, nn.Linear)]
    assert [tuple(m.weight.shape) for m in linears] == shapes
    assert linears[-1].bias.tolist() == [1.0] and 0 < linears[-1].weight.abs().max() < 0.05
    x = randn(6, channels, 5, 4)
    a = x.double().mean((2, 3))
    for m in linears:
        last = m is linears[-1]
        a = F.linear(a, m.weight.double(), m.bias.double())
        a = a if last else a.relu()
    torch.testing.assert_close(q.beta(x).double(), a.reshape(-1).clamp_min(1e-8), rtol=1e-6, atol=1e-6)


def test_training_starts_as_lsq():
    x = randn(8, 16, 5, 5).relu()
    q, plain = adaptive(), Quantizer(qk.LSQ(bits=4))
    q.calibrate(x)
    plain.calibrate(x)
    assert torch.equal(q.step, plain.step)
    assert (q.beta(x) - 1).abs().max() < 0.05
    with torch.no_grad():
        q.adapter[-1].weight.zero_()
    assert_same_bits(q(x), plain(x), "beta = 1")
    own = torch.autograd.grad(q(x).square().sum(), q.step)[0]
    torch.testing.assert_close(own, torch.autograd.grad(plain(x).square().sum(), plain.step)[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("dim", "shape", "rows"),
    [(-3, (6, 16, 5, 4), 6), (-3, (16, 5, 4), 1), (-1, (6, 16), 6), (-1, (2, 7, 16), 14), (-1, (16,), 1)],
)
def test_every_sample_or_token_has_its_beta(dim, shape, rows):
    q, x = adaptive(16, dim, signed=True), randn(*shape)
    q.calibrate(x)
    beta = q.beta(x)
    assert beta.shape == (rows,) and beta.dtype == torch.float32
    y = q(x)
    assert y.shape == x.shape
    want = qk.lsq(x.reshape(rows, -1), q.step * beta, bits=4, signed=True).reshape(shape)
    assert torch.equal(y, want)
    if rows > 1 and dim == -3:
        assert torch.equal(q(x[1:3]), y[1:3]), "a result depends on the own sample only"
    assert q(x[:0]).shape == x[:0].shape


def test_x_gets_the_adapters_gradient_unless_it_is_detached():
    x = randn(3, 16, 5, 4).relu()
    g = randn(3, 16, 5, 4, seed=1)
    grads = {}
    for detach in (False, True):
        q = adaptive(detach_adapter_input=detach)
        q.calibrate(x)
        leaf = x.clone().requires_grad_()
        params = list(q.parameters())
        grads[detach] = torch.autograd.grad(q(leaf), [leaf, *params], g)
        direct = leaf.detach().clone().requires_grad_()
        beta = q.beta(direct).detach().requires_grad_()
        y = qk.asq(direct, q.step.detach(), beta, bits=4)
        dx, dbeta = torch.autograd.grad(y, (direct, beta), g)
        through = torch.autograd.grad(q.beta(leaf), leaf, dbeta)[0] if not detach else torch.zeros_like(x)
        torch.testing.assert_close(grads[detach][0], dx + through)
        assert detach or through.abs().max() > 0
    for a, b in zip(grads[False][1:], grads[True][1:], strict=True):
        assert torch.equal(a, b), "parameters' gradients do not depend on it"
    assert all(p.abs().sum() > 0 for p in grads[True][1:])


def test_a_dead_adapter_gets_no_gradient_and_a_bounded_one_does():
    x = randn(4, 16, 3, 3).relu()
    for bound in (None, 1.0):
        q = adaptive(bound=bound)
        q.calibrate(x)
        torch.testing.assert_close(q.beta(x), torch.ones(4), rtol=0.05, atol=0)
        with torch.no_grad():
            q.adapter[-1].bias.fill_(-0.5 if bound is None else 0.2)
        y = q(x)
        y.square().sum().backward()
        alive = q.adapter[-1].bias.grad.abs().item() > 0
        assert y.isfinite().all() and alive is (bound is not None)
        assert (q.beta(x) == 1e-8).all() if bound is None else (q.beta(x) > 0.4).all()
    with torch.no_grad():
        q.adapter[-1].bias.fill_(99.0)
    assert q.beta(x).tolist() == pytest.approx([2.718281828] * 4)


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_float32_inside(dtype):
    """Sums of 6400 elements that float16 cannot hold, also under autocast."""
    q, x = adaptive(dtype=dtype), (randn(3, 16, 80, 80).abs() * 40).to(dtype)
    q.calibrate(x)
    want = q.beta(x)
    torch.testing.assert_close(want, adaptive_in_float(q).beta(x.float()), rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(q.beta(x), want)
    y = q(x.clone().requires_grad_())
    assert y.dtype == dtype and y.isfinite().all()
    y.float().mean().backward()
    assert all(p.grad.isfinite().all() for p in q.parameters())


def adaptive_in_float(q: AdaptiveStep) -> AdaptiveStep:
    return copy.deepcopy(q).float()


def test_it_is_deterministic():
    q, x = adaptive(), randn(4, 16, 33, 31).relu()
    q.calibrate(x)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            y = q(x)
            results.append((y, *torch.autograd.grad(y.square().sum(), list(q.parameters()))))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(results[1], results[2], strict=True):
        assert torch.equal(a, b)
    assert torch.equal(results[0][0], results[1][0])


def test_a_model_on_the_meta_device_has_shapes():
    layer = QuantLinear(nn.Linear(16, 8), weight=qk.POST(bits=4), activation=qk.ASQ(bits=4))
    layer(torch.randn(3, 16))
    assert layer.to("meta")(torch.randn(5, 16, device="meta")).shape == (5, 8)


def test_it_compiles_whole():
    torch._dynamo.reset()
    q, x = adaptive(), randn(4, 16, 5, 5).relu().requires_grad_()
    q.calibrate(x.detach())
    compiled = torch.compile(q, fullgraph=True, backend="aot_eager")
    params = [x, *q.parameters()]
    want = torch.autograd.grad(q(x).square().sum(), params)
    torch.testing.assert_close(torch.autograd.grad(compiled(x).square().sum(), params), want)


# in layers and models


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3, groups=2), nn.Flatten(), nn.Linear(128, 5))


def prepared(config: qk.ASQ | None = None) -> nn.Sequential:
    config = config or qk.ASQ(bits=4)
    net = model()
    qk.prepare_(net, [("*", (config, config))])
    qk.calibrate(net, randn(8, 4, 8, 8))
    return net


def test_on_a_layer_it_is_post_weights_and_adaptive_activations():
    net = prepared()
    assert isinstance(net[0], QuantConv2d) and isinstance(net[4], QuantLinear)
    for layer, channels, dim, signed in ((net[0], 4, -3, True), (net[2], 16, -3, False), (net[4], 128, -1, True)):
        q = layer.activation_quantizer
        assert layer.weight_quantizer.config == qk.POST(bits=4)
        assert isinstance(q, AdaptiveStep) and (q.channels, q.dim, q.config.signed) == (channels, dim, signed)
    text = str(qk.plan(model(), [("*", (qk.ASQ(bits=4), qk.ASQ(bits=4)))]))
    assert "ASQ(bits=4, row), input ASQ(bits=4, row)" in text


def test_it_trains_converts_saves_and_loads(tmp_path):
    net, x = prepared(), randn(8, 4, 8, 8, seed=1)
    optimizer = torch.optim.Adam(qk.param_groups(net, 1e-3))
    start = {k: v.clone() for k, v in net.state_dict().items()}
    losses = []
    for _ in range(10):
        loss = net(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    moved = [k for k, v in net.state_dict().items() if not torch.equal(v, start[k])]
    assert {"0.activation_quantizer.adapter.0.weight", "2.activation_quantizer.adapter.2.bias"} <= set(moved)
    twin = prepared()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x), net(x))
    qk.convert_(net)
    want = net(x)
    qk.save_packed(net, tmp_path)
    fresh = qk.load_packed(model(), tmp_path)
    assert torch.equal(fresh(x), want)
    assert isinstance(fresh[2].activation_quantizer, AdaptiveStep)


def test_a_frozen_model_has_plain_steps():
    net, batches = prepared(), [randn(8, 4, 8, 8, seed=s) for s in (1, 2)]
    with torch.no_grad():
        net[0].activation_quantizer.adapter[-1].bias.fill_(1.25)
    steps = {k: net[k].activation_quantizer.step.item() for k in (0, 2, 4)}
    betas = torch.cat([net[0].activation_quantizer.beta(b) for b in batches])
    net.train()
    net[2].eval()
    means = freeze_steps_(net, batches)
    assert net.training and not net[2].training
    assert means["0.activation_quantizer"] == pytest.approx(betas.mean().item())
    for k in (0, 2, 4):
        q = net[k].activation_quantizer
        assert type(q) is Quantizer and type(q.config) is qk.LSQ and q.calibrated and q.config.signed is (k != 2)
        assert q.step.item() == pytest.approx(steps[k] * means[f"{k}.activation_quantizer"])
    report = qk.convert_(net)
    assert report.exact
    for bad, message in (
        (net, "the model must have an AdaptiveStep, got none"),
        (nn.Sequential(adaptive()), "every step must be calibrated, not so 0"),
    ):
        with pytest.raises(ValueError, match=message):
            freeze_steps_(bad, batches)
    with pytest.raises(ValueError, match="the batches must reach every step, not so 0.activation_quantizer"):
        freeze_steps_(prepared(), [])


def test_configs_go_through_json():
    config = qk.ASQ(bits=3, grid="release", bound=2.0, detach_adapter_input=True)
    assert from_dict(to_dict(config)) == config


REFUSED = [
    (lambda: qk.ASQ(bits=9), ValueError, "bits must be between 1 and 8"),
    (lambda: qk.ASQ(bits=4, signed=1), TypeError, "LSQ: signed must be a bool, got int"),
    (lambda: qk.ASQ(bits=4, granularity="column"), ValueError, "ASQ: granularity must be"),
    (lambda: qk.ASQ(bits=4, grad_scale=1), TypeError, "grad_scale must be a bool, got int"),
    (lambda: qk.ASQ(bits=4, detach_adapter_input=None), TypeError, "ASQ: detach_adapter_input must be a bool"),
    (lambda: qk.ASQ(bits=4, bound="1"), TypeError, "ASQ: bound must be a number or None, got str"),
    (lambda: qk.ASQ(bits=4, bound=0), ValueError, "ASQ: bound must be above 0 and at most 16, got 0"),
    (lambda: qk.prepare_(model(), [("0", qk.ASQ(bits=4, grid="x"))]), ValueError, "post: grid must be one of"),
    (lambda: adaptive(0), ValueError, "AdaptiveStep: channels must be at least 1, got 0"),
    (lambda: adaptive(8, -2), ValueError, "AdaptiveStep: dim must be -1 or -3, got -2"),
    (lambda: adaptive(8).beta(randn(2, 9, 3, 3)), ValueError, r"x must have 8 channels in dimension -3, got \[2, 9,"),
    (lambda: adaptive(8).beta(randn(2, 8)), ValueError, r"x must have 8 channels in dimension -3, got \[2, 8\]"),
]


@pytest.mark.parametrize(("call", "exception", "message"), REFUSED)
def test_refuses_with_reason(call, exception, message):
    with pytest.raises(exception, match=message):
        call()
