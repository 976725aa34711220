"""Laws of soft_assign and of the forms of dq."""

import pytest
import torch

import qkernels as qk
from qkernels import backends
from qkernels.ops.soft_assign import reference

BACKENDS = [b for b in ("cpu", "triton", "reference") if b in backends.backends_of("soft_assign")]
LEVELS = torch.tensor([-1.2, -0.3, 0.4, 1.3])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def textbook(x, q, t):
    return (torch.softmax(-t * (x[..., None] - q) ** 2, -1) * q).sum(-1)


def test_the_reference_is_the_softmax_of_the_negative_squared_distance():
    """And its autograd gives the closed forms: dx = 2t g Var(q), dq_k = sum g pi_k (1 + 2t (q_k - y) (x - q_k)), dt."""
    x, q, t = (v.double().requires_grad_() for v in (randn(29), LEVELS, torch.tensor([2.3])))
    g = randn(29, seed=1).double()
    y = reference.soft_assign(x, q[None], t)
    torch.testing.assert_close(y, textbook(x, q, t), rtol=1e-14, atol=1e-15)  # float64 roundings
    dx, dq, dt = torch.autograd.grad(y, (x, q, t), g)
    for got, want in zip((dx, dq, dt), torch.autograd.grad(textbook(x, q, t), (x, q, t), g), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        d = x[:, None] - q
        pi = torch.softmax(-t * d**2, -1)
        c = q - y[:, None]
        torch.testing.assert_close(dx, 2 * t * g * (pi * c**2).sum(1), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(dq, (g[:, None] * pi * (1 + 2 * t * c * d)).sum(0), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(dt, -(g[:, None] * pi * c * d**2).sum().reshape(1), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hard", [False, True])
def test_a_level_without_weight_gets_no_gradient(backend, hard):
    levels = torch.tensor([-1.0, 0.0, 1.0, 50.0], requires_grad=True)
    x = randn(3000).clamp(-2, 2).requires_grad_()
    y = qk.soft_assign(x, levels, torch.tensor([4.0]), hard=hard, backend=backend)
    dq, dx = torch.autograd.grad(y, (levels, x), randn(3000, seed=1))
    assert dq[3] == 0 and (dq[:3] != 0).all() and dx.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_powers_of_two_change_no_bit_but_the_exponent(backend):
    """In units of another size, x and levels 2**k as large and t 4**-k: the same y, dx, and dq."""
    x, t, g = randn(500), torch.tensor([3.0]), randn(500, seed=1)

    def grads(scale):
        leaves = [(x * scale).requires_grad_(), (LEVELS * scale).requires_grad_(), t / scale**2]
        y = qk.soft_assign(*leaves, backend=backend)
        return y.detach() / scale, *torch.autograd.grad(y, leaves[:2], g)

    want = grads(1.0)
    for scale in (2.0**-20, 2.0**-7, 2.0**15):
        for got, w in zip(grads(scale), want, strict=True):
            assert torch.equal(got, w)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hard_is_the_nearest_level_and_half_way_the_lower(backend):
    levels = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    x = torch.tensor([-torch.inf, -9.0, -0.5, -0.49, 0.25, 0.26, 1.25, 1.2500001, 3e38, torch.inf])
    want = torch.tensor([-1.0, -1.0, -1.0, 0.0, 0.0, 0.5, 0.5, 2.0, 2.0, 2.0])
    y = qk.soft_assign(x, levels, torch.ones(1), hard=True, backend=backend)
    assert torch.equal(y, want)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hard", [False, True])
def test_a_temperature_that_is_not_positive_shows_in_its_block(backend, hard):
    """Also where y does not depend on it: the gradients would."""
    x, t = randn(4, 9), torch.tensor([2.0, 0.0, -1.0, torch.nan])
    y = qk.soft_assign(x, LEVELS, t, hard=hard, backend=backend)
    assert y.isnan().all(1).tolist() == [False, True, True, True] and not y[0].isnan().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_growing_temperature_leads_to_the_nearest_level(backend):
    x = randn(4000)
    middle = (LEVELS[1:] + LEVELS[:-1]) / 2
    hard = qk.soft_assign(x, LEVELS, torch.ones(1), hard=True, backend=backend)
    far = (x[:, None] - middle).abs().min(1).values > 0.01
    y = qk.soft_assign(x, LEVELS, torch.tensor([1e5]), backend=backend)
    assert torch.equal(y[far], hard[far]) and far.float().mean() > 0.9


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities_saturate_without_gradient(backend):
    x = torch.tensor([torch.inf, -torch.inf, 3e38, -1e31]).requires_grad_()
    levels = LEVELS.clone().requires_grad_()
    y = qk.soft_assign(x, levels, torch.tensor([2.0]), backend=backend)
    dx, dq = torch.autograd.grad(y.sum(), (x, levels))
    assert torch.equal(y, LEVELS[[3, 0, 3, 0]]) and torch.equal(dx, torch.zeros(4))
    assert torch.equal(dq, torch.tensor([2.0, 0.0, 0.0, 2.0]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_offsets_cost_no_accuracy(backend):
    """Exponents are made of differences: levels about 1000 are as good as levels about 0, where x - q is exact."""
    x, offset = (randn(2000) * 64).round() / 64, 1024.0
    levels = (LEVELS * 64).round() / 64
    t = torch.tensor([3.0])
    near = qk.soft_assign(x, levels, t, backend=backend)
    moved = qk.soft_assign(x + offset, levels + offset, t, backend=backend)
    assert (
        moved - offset - near
    ).abs().max() <= 2.0**-13  # half a unit in the last place of 1024, and of the reference


def test_harden_refuses_what_has_no_codes():
    x, t = randn(8), torch.ones(1)
    with pytest.raises(ValueError, match="a soft forward has no codes, got hard=False"):
        qk.harden("soft_assign", x, LEVELS, t)
    rows = torch.stack([LEVELS, LEVELS * 2])
    with pytest.raises(ValueError, match="codes need one codebook for all of x, got 2 of them"):
        qk.harden("soft_assign", x, rows, t, hard=True)
    same = qk.harden("soft_assign", x, LEVELS.expand(2, 4), t, hard=True)
    assert torch.equal(same.value(), qk.soft_assign(x, LEVELS, t, hard=True))
    signed = qk.harden("soft_assign", x, torch.tensor([-1.0, -0.0, 1.0]), t, hard=True)
    assert not signed.levels.signbit()[1], "the forward gives +0"


# dq


def test_the_distance_form_is_soft_assign():
    x, t = randn(50), torch.tensor([2.0])
    for hard in (False, True):
        assert torch.equal(qk.dq(x, LEVELS, t, hard=hard), qk.soft_assign(x, LEVELS, t, hard=hard))


@pytest.mark.parametrize("form", ["logits", "basis"])
@pytest.mark.parametrize("hard", [False, True])
def test_the_other_forms_have_their_formulas_and_gradients(form, hard):
    z, v, t = (a.requires_grad_() for a in (randn(7, 5, 4), randn(4, seed=1), torch.tensor([1.7])))
    g = randn(7, 5, seed=2)
    y = qk.dq(z, v, t, form=form, hard=hard)
    dz, dv, dt = torch.autograd.grad(y, (z, v, t), g)
    with torch.no_grad():
        z, v, t, g = z.double(), v.double(), t.double(), g.double()[..., None]
        if form == "logits":
            b = torch.softmax(t * z, -1)
            soft, exact = (b * v).sum(-1), v[z.argmax(-1)]
            slope = t * b * (v - soft[..., None])
        else:
            b = torch.tanh(t * z)
            soft, exact = (b * v).sum(-1), (torch.where(z < 0, -1.0, 1.0) * v).sum(-1)
            slope = t * v * (1 - b**2)
        eps = torch.finfo(torch.float32).eps
        # eight roundings of operands that are at most |v|, |g t v| and |g z v|, in sums of 4, 35 and 140 terms
        torch.testing.assert_close(y.double(), exact if hard else soft, rtol=0, atol=8 * eps * 4 * v.abs().max().item())
        size = (g.abs().max() * t * v.abs().max()).item()
        torch.testing.assert_close(dz.double(), g * slope, rtol=0, atol=8 * eps * size)
        size = (g.abs().sum() * z.abs().max() * v.abs().max()).item()
        torch.testing.assert_close(dv.double(), (g * b).sum((0, 1)), rtol=0, atol=8 * eps * g.abs().sum().item())
        torch.testing.assert_close(dt.double(), (g * slope * z / t).sum().reshape(1), rtol=0, atol=8 * eps * 4 * size)


def test_the_other_forms_take_blocks_dtypes_and_keep_nan_local():
    z, t = randn(6, 5, 4), torch.tensor([1.0, 2.0, 3.0])
    rows = randn(3, 4, seed=1)
    for form in ("logits", "basis"):
        for hard in (False, True):
            y = qk.dq(z, rows, t, form=form, hard=hard)
            for p in range(3):
                part = qk.dq(z[2 * p : 2 * p + 2], rows[p], t[p : p + 1], form=form, hard=hard)
                assert torch.equal(y[2 * p : 2 * p + 2], part)
            assert qk.dq(z.bfloat16(), rows, t, form=form, hard=hard).dtype == torch.bfloat16
            odd = z.clone()
            odd[1, 2, 3] = torch.nan
            got = qk.dq(odd, rows, t, form=form, hard=hard)
            assert got.isnan().nonzero().tolist() == [[1, 2]]
            collapsed = qk.dq(z, rows, torch.tensor([1.0, 0.0, 3.0]), form=form, hard=hard)
            assert collapsed.isnan().all(1).tolist() == [False, False, True, True, False, False]
    first = qk.dq(torch.zeros(1, 4), rows[0], t[:1], form="logits", hard=True)
    assert first == rows[0, 0], "the first of equals"
    assert qk.dq(torch.tensor([[0.0, -0.0]]), torch.tensor([1.0, 2.0]), t[:1], form="basis", hard=True) == 3


X, T = torch.randn(6, 4), torch.ones(1)
REFUSED = [
    ((X, LEVELS, T), dict(form="nearest"), ValueError, "form must be one of distance, logits, basis, got 'nearest'"),
    ((X, LEVELS[:3], T), dict(form="logits"), ValueError, r"last dimension of latent must be K=3 \(form logits\)"),
    ((X, LEVELS[0], T), dict(form="logits"), ValueError, r"levels must have shape \[K\] or \[P, K\], K of 2 to 256"),
    ((X, torch.ones(9), T), dict(form="basis"), ValueError, r"K of 1 to 8 \(form basis\), got \[9\]"),
    ((X, LEVELS, T[0]), dict(form="logits"), ValueError, r"temperature must have shape \[1\] or \[P\], got \[\]"),
    ((X, LEVELS, torch.ones(4)), dict(form="basis"), ValueError, "P a divisor of 6 results, got 1 and 4"),
    ((X.int(), LEVELS, T), dict(form="basis"), TypeError, "latent must be a float tensor, got torch.int32"),
    ((X, [1.0], T), dict(form="basis"), TypeError, "levels must be a Tensor, got list"),
    ((X, LEVELS.to("meta"), T), dict(form="logits"), ValueError, "latent and levels must be on one device"),
    ((X, LEVELS, T), dict(form="logits", hard=1), TypeError, "hard must be a bool, got int"),
    ((X, LEVELS, T), dict(form="logits", backend="cpu"), NotImplementedError, "the backend reference alone, got 'cpu'"),
]  # fmt: skip


@pytest.mark.parametrize("tensors, kwargs, exception, message", REFUSED)
def test_dq_refuses_with_reason(tensors, kwargs, exception, message):
    with pytest.raises(exception, match=message):
        qk.dq(*tensors, **kwargs)
