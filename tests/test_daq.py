"""DAQ's laws: the closed form is what autograd makes of the soft assignment, and what holds at the edges."""

import math

import pytest
import torch
from torch import Tensor, nn

import qkernels as qk
from qkernels import backends
from qkernels.nn import LutLinear, Quantizer, QuantLinear
from qkernels.ops.daq import reference
from qkernels.ops.daq.config import statistics
from qkernels.testing.compare import assert_same_bits, value_and_grads

BACKENDS = [b for b in backends.backends_of("daq") if backends.refusal("daq", b, torch.empty(0)) is None]
every_backend = pytest.mark.parametrize("backend", BACKENDS)
ONE = torch.ones(1)


def soft_argmax(
    x: Tensor, lower: Tensor, upper: Tensor, *, bits: int, signed: bool, gamma: float, sigma: float, eps: float = 0.0
) -> Tensor:
    """DAQ as its authors compute it, from the formulas: scores of the codes around q, a kernel around the nearer one,
    a softmax whose temperature the gap of the scores sets, and codes moved apart to undo the softmax."""
    n = 2**bits - 1
    clipped = (x < lower) | (x > upper)
    q = (x - lower) / (upper - lower) * n
    q = torch.where(clipped, q.detach().clamp(0, n), q)
    floor = q.detach().floor()
    d = q - floor
    distances = torch.stack([d, d - 1])
    scores = torch.exp(-torch.where(distances >= 0, distances, -distances))  # |d| has the derivative +1 at 0
    near = scores.detach().argmax(0)
    kernel = torch.full_like(scores, math.exp(-(sigma**-2)))
    kernel[near, torch.arange(len(x))] = 1.0
    scores = scores * kernel
    p = torch.softmax(gamma / ((scores[0] - scores[1]).abs().detach() + eps) * scores, 0)
    shift = 1 / math.expm1(gamma)
    code = floor - shift * p[0] + (1 + shift) * p[1]
    return (2 * code - n) / n if signed else code / n


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_it_is_the_authors_soft_argmax(bits, signed):
    """Value and gradients of the reference in float64, also on every code and on the bounds."""
    n = 2**bits - 1
    lower, upper = (torch.tensor([p], dtype=torch.float64) for p in (-1.25 if signed else 0.0, 1.75))
    x = torch.randn(1000, generator=torch.Generator().manual_seed(bits))  # of float32: codes are decided in it
    q = (x.double() - lower) / (upper - lower) * n
    x = x[(q - q.floor() - 0.5).abs() > 1e-4]  # in the very middle float32 may fall to the other code
    x = torch.cat([x.double(), lower, upper])
    if signed is False and bits < 8:
        upper = torch.full_like(upper, float(n))
        x = torch.cat([x, torch.arange(n + 1.0, dtype=torch.float64)])
    assert ((x == lower) | (x == upper)).sum() >= 1
    for gamma in (0.1, 1.0, 2.0, 5.0, 10.0):
        for sigma in (0.5, 1.0, 2.0, 4.0):
            options = dict(bits=bits, signed=signed, gamma=gamma, sigma=sigma)
            want, grads, g = value_and_grads(soft_argmax, (x, lower, upper), options)

            def ours(x, lower, upper, gamma=gamma, sigma=sigma):
                return reference.daq(x, lower, upper, ONE.double(), n, signed, gamma, sigma)

            got, own, _ = value_and_grads(ours, (x, lower, upper), {}, g=g)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12 / math.tanh(gamma / 2))
            for a, b in zip(own, grads, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * grads[0].abs().max().item())


@pytest.mark.parametrize(("eps", "most"), [(1e-6, 2e-6), (1e-3, 2e-3), (1e-2, 2e-2)])
def test_an_eps_in_the_temperature_is_the_papers(eps, most):
    """Value and gradients in float64, and how far from the levels: about eps of a step."""
    lower, upper = (torch.tensor([p], dtype=torch.float64) for p in (-1.25, 1.75))
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    q = (x.double() - lower) / (upper - lower) * 7
    x = torch.cat([x[(q - q.floor() - 0.5).abs() > 1e-4].double(), lower, upper])
    for signed in (True, False):
        options = dict(bits=3, signed=signed, gamma=2.0, sigma=2.0, eps=eps)
        want, grads, g = value_and_grads(soft_argmax, (x, lower, upper), options)

        def ours(x, lower, upper, signed=signed):
            return reference.daq(x, lower, upper, ONE.double(), 7, signed, 2.0, 2.0, eps)

        got, own, _ = value_and_grads(ours, (x, lower, upper), {}, g=g)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
        for a, b in zip(own, grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * grads[0].abs().max().item())
        code = (got + 1) / 2 * 7 if signed else got * 7
        assert 0.5 * most < (code - code.round()).abs().max() < 1.05 * most
        y = qk.daq(x.float(), lower.float(), upper.float(), **options)
        torch.testing.assert_close(y.double(), got, rtol=0, atol=1e-6)


def test_an_eps_is_for_the_reference():
    x, bounds = torch.randn(4), (-ONE, ONE)
    with pytest.raises(NotImplementedError, match="daq: cpu cannot run: eps must be 0 but on the reference, got 0.01"):
        qk.daq(x, *bounds, bits=4, eps=0.01, backend="cpu")
    with pytest.raises(ValueError, match="daq: eps must be between 0 and 1, got -1"):
        qk.daq(x, *bounds, bits=4, eps=-1.0)
    with pytest.raises(ValueError, match="daq: eps must be 0 for y to be on the levels, got 0.01"):
        qk.harden("daq", x, *bounds, bits=4, eps=0.01)


@every_backend
def test_on_a_code_the_gain_is_not_that_of_a_plain_abs(backend):
    """A ReLU's zeros are on a code. With |d|' = 0 there, autograd gives 0.1107 for gamma = sigma = 2; G is 0.4972."""
    x, upper = torch.tensor([0.0, 1.0, 7.0, 15.0]), torch.tensor([15.0])
    options = dict(bits=4, signed=False, gamma=2.0, sigma=2.0, backend=backend)
    _, (dx, _, _), _ = value_and_grads(
        lambda *t: qk.daq(*t, scale=upper, **options), (x, torch.zeros(1), upper), {}, g=torch.ones(4)
    )
    z = 1.25
    want = 2 / (2 * math.sinh(2)) / math.tanh(z / 2)
    assert abs(want - 0.4972) < 5e-5
    torch.testing.assert_close(dx, torch.full((4,), want), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("gamma", "sigma", "low", "high", "mean"),
    [(2.0, 1.0, 0.362, 0.597, 0.448), (2.0, 2.0, 0.497, 2.217, 0.922), (2.0, 4.0, 0.567, 8.83, 1.588)],
)
def test_the_gain_grows_from_a_code_to_the_middle(gamma, sigma, low, high, mean):
    """Its values on a code and in the middle, and its mean over a bin: A 2 ln(sinh((k + 1) / 2) / sinh(k / 2))."""
    n = 200_001
    x = torch.linspace(0, 1, n)
    options = dict(bits=1, signed=False, gamma=gamma, sigma=sigma)
    _, (dx, _, _), _ = value_and_grads(qk.daq, (x, torch.zeros(1), ONE), options, g=torch.ones(n))
    assert [round(v, len(str(want)) - 2) for v, want in ((dx[0].item(), low), (dx[n // 2].item(), high))] == [low, high]
    kappa = sigma**-2
    exact = reference.amplitude(gamma) * 2 * math.log(math.sinh((kappa + 1) / 2) / math.sinh(kappa / 2))
    assert abs(exact - mean) < 5e-4 and abs(dx.double().mean().item() - exact) < 1e-4 * exact
    torch.testing.assert_close(dx, dx.flip(0), rtol=2e-4, atol=0)
    assert (dx[: n // 2].diff() >= -1e-5).all()


def test_gamma_is_a_factor_of_the_gradient_and_nothing_else():
    x, bounds = torch.randn(1000), (torch.tensor([-1.0]), torch.tensor([1.5]))
    y, base, g = value_and_grads(qk.daq, (x, *bounds), dict(bits=3))
    for gamma, amplitude in ((0.1, 0.4992), (1.0, 0.4255), (2.0, 0.2757), (5.0, 0.0337), (10.0, 0.00045)):
        assert abs(reference.amplitude(gamma) - amplitude) < 5e-5
        other, grads, _ = value_and_grads(qk.daq, (x, *bounds), dict(bits=3, gamma=gamma), g=g)
        assert_same_bits(other, y, "forward")
        for a, b in zip(grads, base, strict=True):
            torch.testing.assert_close(a, b * (reference.amplitude(gamma) / reference.amplitude(2.0)))
    assert abs(reference.amplitude(1e-6) - 0.5) < 1e-9


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_are_exact_levels(backend, dtype):
    """The softmax form is off by up to 8e-3 in float16; here y is an integer times 1 / N, half down, for all codes."""
    for bits in range(1, 9):
        n = 2**bits - 1
        codes = torch.arange(n + 1.0)
        x = torch.cat([codes, codes[:-1] + 0.5, torch.tensor([-torch.inf, -7.0, n + 9.0, torch.inf])])
        want = torch.cat([codes, codes[:-1], torch.tensor([0.0, 0, n, n])])
        bounds = torch.zeros(1), torch.tensor([float(n)])
        y = qk.daq(x.to(dtype), *bounds, torch.tensor([float(n)]), bits=bits, signed=False, backend=backend)
        assert torch.equal(y, want.to(dtype))
        y = qk.daq(x.to(dtype), *bounds, bits=bits, backend=backend)
        assert torch.equal(y, ((2 * want - n) * torch.tensor(1 / n)).to(dtype))
    for signed, levels in ((True, [-1.0, 1.0]), (False, [0.0, 1.0])):
        y = qk.daq(torch.randn(50).to(dtype), -ONE, ONE, bits=1, signed=signed, backend=backend)
        assert y.unique().tolist() == levels


@every_backend
def test_the_bounds_belong_to_the_inside(backend):
    """Also where (x - lower) * (N / (upper - lower)) rounds away from 0 or N."""
    torch.manual_seed(0)
    lower = torch.randn(2000)
    upper = lower + torch.rand(2000) + 0.01
    for x, inside in (
        (lower, True),
        (upper, True),
        (lower.nextafter(-ONE * 9), False),
        (upper.nextafter(ONE * 9), False),
    ):
        y, (dx, dl, du), g = value_and_grads(
            qk.daq, (x, lower, upper), dict(bits=4, backend=backend), g=torch.ones(2000)
        )
        low = x <= lower
        assert_same_bits(y, torch.where(low, -15.0, 15.0) * torch.tensor(1 / 15), "codes 0 and N")
        assert ((dx > 0) == inside).all()
        own, other = torch.where(low, dl, du), torch.where(low, du, dl)  # of the bound that x is on
        torch.testing.assert_close(own, -dx, rtol=1e-6, atol=0)
        assert (other.abs() <= 1e-6 * dx).all()


@every_backend
def test_the_learned_scale_has_its_closed_form(backend):
    """daq(x, -s, s, s, symmetric=True): dx = in G,  ds = (2 Q / N - 1) - in G x / s; clipped: -1 or 1."""
    x, s = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * 1.5, torch.tensor([1.3])
    for bits in (2, 3, 4, 8):
        n = 2**bits - 2
        y, (dx, ds), g = value_and_grads(
            lambda x, s, bits=bits: qk.daq(x, -s, s, s, bits=bits, symmetric=True, backend=backend), (x, s), {}
        )
        wide, inside = x.double(), x.abs() <= s
        q = ((wide / s + 1) / 2 * n).clamp(0, n)
        slope = reference.gain(q, 2.0, 1.0) * inside
        level = y.double() / s
        assert level.mul(n / 2).sub(level.mul(n / 2).round()).abs().max() < 1e-5 * n and 0.0 in level
        end, rounded = level[~inside].abs(), 3 * 2**-24  # 1 / N, s / N and the product
        assert (end - 1).abs().max() <= rounded and torch.equal(level[~inside].sign(), wide[~inside].sign())
        steepest = 2 * slope.max().item()  # |dG/dq| <= 2 G at sigma 1; q has three roundings of up to n * 2**-24
        near = 3 * n * 2**-24 * steepest + 8 * 2**-24
        assert ((dx.double() - g * slope).abs() <= near * g.abs()).all()
        want = (g * (level - slope * wide / s)).sum()
        assert abs(ds.item() - want.item()) <= 2 * near * g.abs().sum()


@every_backend
def test_bounds_that_meet_or_cross_give_nan_in_their_block(backend):
    x = torch.randn(5, 8)
    lower, upper = -torch.ones(5), torch.ones(5)
    lower[1], upper[2], lower[3], upper[3] = 1.0, -2.0, torch.nan, torch.nan
    y = qk.daq(x, lower, upper, bits=4, backend=backend)
    assert y.isnan().all(1).tolist() == [False, True, True, True, False]
    assert y[[0, 4]].isfinite().all()


@every_backend
def test_bounds_as_close_as_floats_can_be(backend):
    lower = torch.tensor([1.0])
    upper = lower.nextafter(lower + 1)
    x = torch.tensor([0.0, 1.0, upper.item(), 2.0])
    y, (dx, dl, du), _ = value_and_grads(qk.daq, (x, lower, upper), dict(bits=4, backend=backend), g=torch.ones(4))
    assert_same_bits(y, torch.tensor([-15.0, -15, 15, 15]) * torch.tensor(1 / 15), "codes")
    assert dx.isfinite().all() and (dx > 0).tolist() == [False, True, True, False]
    assert dl.isfinite().all() and du.isfinite().all()


@every_backend
def test_an_infinity_moves_no_bound(backend):
    """(x - lower) is infinite there: it must be left out before it is multiplied by 0."""
    x = torch.tensor([0.3, torch.inf, -torch.inf, 1e30, -0.2])
    y, (dx, dl, du), g = value_and_grads(qk.daq, (x, -ONE, ONE), dict(bits=4, backend=backend))
    assert y.isfinite().all() and dx[1:4].tolist() == [0, 0, 0]
    keep = torch.tensor([0, 4])
    _, (kx, kl, ku), _ = value_and_grads(qk.daq, (x[keep], -ONE, ONE), dict(bits=4, backend=backend), g=g[keep])
    torch.testing.assert_close((dx[keep], dl, du), (kx, kl, ku))


def test_no_scale_is_a_scale_of_one():
    x, bounds = torch.randn(3, 40), (-torch.ones(3), torch.ones(3))
    for options in (dict(bits=4), dict(bits=2, signed=False)):
        y = qk.daq(x, *bounds, **options)
        assert_same_bits(y, qk.daq(x, *bounds, torch.ones(1), **options), "y")
        a, b = qk.harden("daq", x, *bounds, **options), qk.harden("daq", x, *bounds, torch.ones(3), **options)
        assert all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


def test_harden_refuses_bounds_that_cross():
    with pytest.raises(ValueError, match="daq: upper must be above lower, got 1 and 1 in block 1"):
        qk.harden("daq", torch.randn(2, 4), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), bits=4)


def test_sigma_defaults_to_the_release():
    x, bounds = torch.randn(100), (-ONE, ONE)
    for signed, sigma in ((True, 1.0), (False, 2.0)):
        want = value_and_grads(qk.daq, (x, *bounds), dict(bits=4, signed=signed, sigma=sigma))[1]
        got = value_and_grads(qk.daq, (x, *bounds), dict(bits=4, signed=signed))[1]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# in layers


def layer(weight: qk.DAQ, activation: qk.DAQ | None = None, dtype: torch.dtype = torch.float32) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear.from_float(nn.Linear(64, 24).to(dtype), weight=weight, activation=activation)


@pytest.mark.parametrize("granularity", ["tensor", "row", 32])
def test_a_weight_is_standardized_with_detached_statistics(granularity):
    quant = layer(qk.DAQ(bits=3, granularity=granularity))
    q, w = quant.weight_quantizer, quant.weight
    with torch.no_grad():
        w.add_(0.02)
        q.lower.add_(0.25)
        q.upper.mul_(0.7)
    P = q.scale.numel()
    flat = w.detach().reshape(P, -1)
    deviation, mean = torch.std_mean(flat, 1, keepdim=True)
    normal = ((flat - mean) / deviation).reshape(w.shape)
    plain = [t.detach().clone().requires_grad_() for t in (normal, q.lower, q.upper, q.scale)]
    want = qk.daq(*plain, bits=3, sigma=1.0)
    y = quant.weight_quantizer(w)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    same = y == want
    assert same.float().mean() > 0.999, "standardizing in float32 may move a weight across a middle"
    got = torch.autograd.grad(y, (w, q.lower, q.upper, q.scale), g * same)
    dn, *expected = torch.autograd.grad(want, plain, g * same)
    dw = (dn.reshape(P, -1) / deviation).reshape(w.shape)
    torch.testing.assert_close(got, (dw, *expected), rtol=1e-3, atol=1e-4)


def test_statistics_are_those_of_torch():
    for shift in (0.0, 1.0, 30.0):
        for dtype in (torch.float32, torch.bfloat16):
            w = (torch.randn(6, 500, generator=torch.Generator().manual_seed(0)) + shift).to(dtype)
            for P in (1, 6):
                mean, deviation = statistics(w, P)
                want_deviation, want = torch.std_mean(w.double().reshape(P, -1), 1)
                torch.testing.assert_close(mean.double(), want, rtol=1e-6, atol=1e-6)
                # sums of L squares, of which the variance is what is left
                near = w.numel() ** 0.5 * 2**-24 * (1 + (want / want_deviation).square().max().item())
                torch.testing.assert_close(deviation.double(), want_deviation, rtol=near, atol=0)
    mean, deviation = statistics(torch.tensor([[0.0, 0], [3, 3], [-3, -3]]), 3)
    assert (deviation > 0).all() and mean.tolist() == [0, 3, -3]


def test_where_a_weight_starts():
    w = torch.randn(8, 200, generator=torch.Generator().manual_seed(0)) * 0.1
    w[5] = 0  # a row of zeros
    w[6] = 0.1
    for bits in (1, 2, 4):
        config = qk.DAQ(bits=bits, signed=True, granularity="row")
        start = config.init(w, 8)
        assert (start["lower"] == -3).all() and (start["upper"] == 3).all()
        y = config.quantize(w, *start.values())
        assert y.isfinite().all() and (start["scale"] > 0).all() and (start["scale"] < 2).all()
        for factor in (0.99, 1.01):
            other = config.quantize(w, start["lower"], start["upper"], start["scale"] * factor)
            error, more = ((t - w).square().sum(1)[:5] for t in (y, other))
            assert (error < more).all(), "least squares"
    one_bit = qk.DAQ(bits=1, signed=True).init(w[:5], 1)["scale"]
    torch.testing.assert_close(one_bit, w[:5].sub(w[:5].mean()).sign().mul(w[:5]).mean().reshape(1))
    zero = qk.DAQ(bits=4, signed=True).init(torch.zeros(4, 100), 1)
    assert zero["scale"].tolist() == pytest.approx([0.1])


def test_an_unsigned_activation_keeps_its_lower_bound_at_0():
    quant = layer(qk.DAQ(bits=4), qk.DAQ(bits=2))
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)).relu()
    quant(x)
    q = quant.activation_quantizer
    assert q.config.signed is False and q.config.role == "activation" and q.lower.item() == 0
    torch.testing.assert_close(q.upper, 3 * x.std().reshape(1))
    y = q(x)
    assert y.unique().numel() == 4 and y.min() == 0
    assert (y - x).square().mean() < 0.2 * x.square().mean()
    y.sum().backward()
    assert q.lower.grad.tolist() == [0.0] and q.upper.grad.item() != 0 and q.scale.grad.item() != 0
    with torch.no_grad():
        q.lower.fill_(0.5)
    assert torch.equal(q(x), y), "it is 0 whatever the parameter says"
    want = qk.daq(x, torch.zeros(1), q.upper, q.scale, bits=2, signed=False, sigma=2.0)
    assert torch.equal(q(x), want)


def test_a_signed_activation_learns_both_bounds():
    quant = layer(qk.DAQ(bits=4), qk.DAQ(bits=4))
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    quant(x)
    q = quant.activation_quantizer
    assert q.config.signed is True and q.lower.item() == -q.upper.item() < 0
    g = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    dx, dl, du = torch.autograd.grad(q(x), (x, q.lower, q.upper), g)
    want = torch.autograd.grad(qk.daq(x, q.lower, q.upper, q.scale, bits=4, sigma=2.0), (x, q.lower, q.upper), g)
    torch.testing.assert_close((dx, dl, du), want)
    assert dl.item() != 0 and du.item() != 0


@pytest.mark.parametrize("activation", [False, True])
def test_bounds_that_cross_are_reflected(activation):
    """Training goes on: the grid keeps its width, and the gradient of upper turns round."""
    q = Quantizer(qk.DAQ(bits=4, signed=True, role="activation" if activation else "weight"), None)
    x = torch.randn(100, 32, generator=torch.Generator().manual_seed(0))
    q.calibrate(x)
    y = q(x)
    base = torch.autograd.grad(y.square().sum(), q.upper)[0]
    lower, upper = q.lower.item(), q.upper.item()
    with torch.no_grad():
        q.upper.fill_(2 * lower - upper)
    crossed = q(x)
    assert torch.equal(crossed, y)
    got = torch.autograd.grad(crossed.square().sum(), q.upper)[0]
    torch.testing.assert_close(got, -base, rtol=1e-5, atol=0)  # 2 lower - upper rounds
    for value in (lower, lower * (1 + 1e-7), 0.0):
        with torch.no_grad():
            q.lower.fill_(value)
            q.upper.fill_(value)
        y = q(x)
        assert y.isfinite().all(), "bounds that meet are kept apart"
        assert torch.autograd.grad(y.sum(), q.upper)[0].isfinite().all()
        assert torch.autograd.grad(q.config._grid(x, *q.values())[1], q.upper)[0] > 0, "and can part again"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_variant_scale_is_one_learned_scale(bits):
    config = qk.DAQ(bits=bits, granularity="row", variant="scale")
    quant = layer(config, qk.DAQ(bits=bits, variant="scale"))
    q = quant.weight_quantizer
    assert [name for name, _ in q.named_parameters()] == ["scale"] and q.config.n_levels == 2**bits - 1
    s = q.scale.detach()
    assert torch.equal(q(quant.weight), qk.daq(quant.weight, -s, s, s, bits=bits, symmetric=True))
    x = torch.randn(100, 64).relu()
    quant(x)
    a = quant.activation_quantizer
    want = qk.daq(x, torch.zeros(1), a.scale, a.scale, bits=bits, signed=False, sigma=2.0)
    assert torch.equal(a(x), want) and (want - x).square().mean() < 0.12 * x.square().mean()
    packed = LutLinear.from_quant(quant)
    assert torch.equal(packed.weight_lut.dequantize(), q(quant.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_bit_weights_and_activations_train_and_pack(dtype):
    quant = layer(qk.DAQ(bits=1, granularity="row"), qk.DAQ(bits=1), dtype)
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).relu().to(dtype)
    quant(x).float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quant.parameters())
    assert quant.weight.grad.abs().sum() > 0 and quant.activation_quantizer.upper.grad.abs().sum() > 0
    packed = LutLinear.from_quant(quant)
    assert packed.bits == 1 and packed.levels.tolist() == [-1, 1]
    assert torch.equal(packed.weight_lut.dequantize(dtype), quant.weight_quantizer(quant.weight))
    assert quant.activation_quantizer(x).unique().numel() == 2


REFUSED = [
    (lambda: qk.DAQ(bits=9), "DAQ: bits must be between 1 and 8"),
    (lambda: qk.DAQ(bits=1, signed=True, variant="scale"), r"DAQ: bits must be between 2 and 8 \(symmetric\), got 1"),
    (lambda: qk.DAQ(bits=4, variant="paper"), "DAQ: variant must be one of standardized, scale, got 'paper'"),
    (lambda: qk.DAQ(bits=4, role="bias"), "DAQ: role must be one of None, weight, activation, got 'bias'"),
    (lambda: qk.DAQ(bits=4, gamma=-1), "DAQ: gamma must be above 0 and at most 80, got -1"),
    (lambda: qk.DAQ(bits=4, sigma=0.0), "DAQ: sigma must be above 0.01 and at most 100, got 0"),
    (lambda: qk.DAQ(bits=4, granularity="column"), "DAQ: granularity must be"),
    (lambda: qk.DAQ(bits=4).quantize(ONE, ONE, ONE, ONE), "DAQ: signed must be decided"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_config_refuses_with_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
