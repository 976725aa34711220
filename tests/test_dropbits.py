"""Laws of cpq with gates: what dropping a level means, and that wide gaps and far tails stay finite and right."""

import pytest
import torch

import qkernels as qk
from qkernels import backends
from qkernels.ops.dropbits import reference
from qkernels.testing.compare import assert_same_bits, value_and_grads

EPS = torch.finfo(torch.float32).eps
BACKENDS = [b for b in backends.backends_of("dropbits") if backends.refusal("dropbits", b, torch.empty(0)) is None]


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits, n", [(2, 1), (3, 2), (3, 3), (4, 3), (4, 7), (8, 7)])
@pytest.mark.parametrize("rho", [0.5, 3.0, 20.0])
def test_all_gates_open_is_cpq_on_the_symmetric_grid(bits, n, rho, backend):
    """Switching DropBits on changes no code; the gradient is that with truncate: the sum is the grid's mass."""
    step = torch.tensor([2.0 / 2**bits])
    x = torch.cat([randn(1000), torch.arange(-(2 ** (bits + 1)), 2 ** (bits + 1) + 1) * (step / 2)])
    tensors = (x, step, step / rho)
    want, grads, g = value_and_grads(qk.cpq, tensors, dict(bits=bits, symmetric=True, truncate=True))
    got, own, _ = value_and_grads(qk.cpq, (*tensors, torch.ones(n)), dict(bits=bits, backend=backend))
    assert_same_bits(got, want, "codes")
    size = 2.0**bits * rho
    torch.testing.assert_close(own[0], grads[0], rtol=32 * EPS, atol=32 * EPS * size)
    for a, b, power in ((own[1], grads[1], 1), (own[2], grads[2], rho)):
        torch.testing.assert_close(a, b, rtol=32 * EPS, atol=EPS * size * power * 2**bits * g.abs().sum().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_dropping_the_outermost_level_is_one_bit_less(bits, backend):
    tensors = (randn(1000), torch.tensor([2.0 / 2**bits]), torch.tensor([0.7 / 2**bits]))
    keep = torch.rand(bits - 1, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.5
    keep[-1] = 0
    got, own, g = value_and_grads(qk.cpq, (*tensors, keep), dict(bits=bits, backend=backend))
    want, grads, _ = value_and_grads(qk.cpq, (*tensors, keep[:-1]), dict(bits=bits - 1, backend=backend))
    assert_same_bits(got, want, "codes")
    for a, b in zip(own[:3], grads[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    torch.testing.assert_close(own[3][:-1], grads[3], rtol=1e-4, atol=1e-4)
    assert own[3][-1] == 0, "a gate of exactly 0 has no gradient"


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_gates_of_magnitudes_are_the_gate_of_their_bit(backend):
    tensors, keep = (randn(1000), torch.tensor([0.2]), torch.tensor([0.06])), torch.tensor([0.9, 0.5, 0.7])
    each = keep.repeat_interleave(torch.tensor([1, 2, 4]))
    got, own, _ = value_and_grads(qk.cpq, (*tensors, each), dict(bits=4, backend=backend))
    want, grads, _ = value_and_grads(qk.cpq, (*tensors, keep), dict(bits=4, backend=backend))
    assert_same_bits(got, want, "codes")
    for a, b in zip(own[:3], grads[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    summed = torch.stack([own[3][:1].sum(), own[3][1:3].sum(), own[3][3:].sum()])
    torch.testing.assert_close(summed, grads[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rho", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_reference_is_the_materialised_definition(bits, rho):
    """M pi / sum M pi with sigmoid differences for every code, in float64, where that is accurate: inside the grid."""
    top = 2 ** (bits - 1) - 1
    keep = torch.rand(bits - 1, generator=torch.Generator().manual_seed(2)).double() * 0.9 + 0.05
    x, step = (
        (torch.rand(500, generator=torch.Generator().manual_seed(0)).double() * 2 - 1) * top * 0.3,
        torch.tensor([0.3]),
    )
    tensors = (x, step.double(), (step / rho).double(), keep)
    n = torch.arange(-top, top + 1).double()
    level = torch.tensor([int(abs(v)).bit_length() for v in n])

    def plain(x, step, sigma, keep):
        M = torch.cat([torch.ones(1, dtype=torch.float64), keep])[level]
        edge = lambda c: torch.sigmoid((step * c - x[:, None]) / sigma)  # noqa: E731
        p = M * (edge(n + 0.5) - edge(n - 0.5))
        p = p / p.sum(1, keepdim=True)
        best = p.detach().argmax(1)
        q = p.gather(1, best[:, None])[:, 0]
        return (1 + q - q.detach()) * n[best] * step

    y, grads, g = value_and_grads(lambda *t: reference.dropbits(*t, bits), tensors, {})
    want, grads_want, _ = value_and_grads(plain, tensors, {}, g=g)
    torch.testing.assert_close(y, want)
    for got, true in zip(grads, grads_want, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-9 * true.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rho", [3.0, 20.0, 200.0])
def test_a_wide_gap_of_dropped_levels_leaves_the_nearest_one(rho, backend):
    """Up to 64 codes, thousands of sigma, from every kept level: no probability there is a float32."""
    step = torch.tensor([0.01])
    u = torch.cat([torch.arange(0, 140.0, 0.37), torch.tensor([1e4, 1e30, torch.inf])])
    x = torch.cat([u, -u]) * step
    for keep in ([0, 0, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 0, 0.5], [0.3, 0, 0, 0, 0, 0, 0], [0] * 7):
        tensors = (x, step, step / rho, torch.tensor(keep, dtype=torch.float32))
        y, grads, _ = value_and_grads(qk.cpq, tensors, dict(bits=8, backend=backend))
        kept = [0.0] + [float(n) for k in range(7) if keep[k] for n in range(2**k, 2 ** (k + 1))]
        if len({k for k in keep if k} | {1}) == 1:  # equal gates: exactly the nearest
            levels = torch.tensor(kept)
            nearest = levels[(x.abs()[:, None] / step - levels).abs().argmin(1)]
            nearest[x.abs() > 1000 * step] = kept[-1]
            decided = ((x.abs() / step).frac() - 0.5).abs() > 1e-3  # ties apart
            assert torch.equal((y.abs() / step).round()[decided], nearest[decided])
        assert set((y.abs() / step).round().tolist()) <= set(kept)
        assert all(grad.isfinite().all() for grad in grads)
        assert grads[0][x.isinf()].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits, n", [(3, 3), (4, 3), (4, 7), (8, 7)])
@pytest.mark.parametrize("rho", [0.05, 0.5, 3.0])
def test_the_code_has_the_largest_score_whatever_the_gates(bits, n, rho, backend):
    """Gates down to e**-12: levels that are chosen nowhere, and others that win inside the run of their neighbor."""
    top, step = 2 ** (bits - 1) - 1, torch.tensor([0.37])
    codes = torch.arange(-top, top + 1)
    level = torch.tensor([abs(v).bit_length() if n == bits - 1 else abs(v) for v in codes.tolist()])
    g = torch.Generator().manual_seed(0)
    chosen = set()
    for _ in range(8):
        keep = torch.exp(-12 * torch.rand(n, generator=g) ** 3)
        x = (torch.rand(300, generator=g) * 2 - 1) * (top + 2 + 2 / rho) * step
        y = qk.cpq(x, step, step / rho, keep, bits=bits, backend=backend)
        index = (y / step).round().long() + top
        d = (x.double() / step.double())[:, None] - codes
        score = torch.nn.functional.logsigmoid(rho * (0.5 - d)) + torch.nn.functional.logsigmoid(rho * (0.5 + d))
        score = score + torch.cat([torch.ones(1), keep]).double().log()[level]
        best, own = score.amax(1), score.gather(1, index[:, None])[:, 0]
        assert (best - own <= 16 * EPS * (1 + best.abs())).all()
        chosen.add(tuple(index.unique().tolist()))
    assert len(chosen) > 1, "the gates decide"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_gate_that_is_no_number_is_seen(bad, backend):
    for n, bits in ((3, 4), (7, 4), (127, 8)):
        keep = torch.ones(n)
        keep[n // 2] = bad
        tensors = (randn(3, 20), torch.full((3,), 0.2), torch.full((3,), 0.06), keep)
        y, (_, *grads), _ = value_and_grads(qk.cpq, tensors, dict(bits=bits, backend=backend))
        assert y.isnan().all() and all(grad.isnan().any() for grad in grads[:2])


def test_harden_refuses_gates_of_an_unsigned_grid_as_cpq_does():
    tensors = (torch.rand(4), torch.tensor([0.2]), torch.tensor([0.06]), torch.ones(3))
    for call in (qk.cpq, lambda *t, **options: qk.harden("cpq", *t, **options)):
        with pytest.raises(ValueError, match="cpq: keep must go with signed=True, got signed=False"):
            call(*tensors, bits=4, signed=False)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_negative_gate_is_dropped_and_one_above_1_is_a_weight(backend):
    tensors, keep = (randn(1000), torch.tensor([0.2]), torch.tensor([0.06])), torch.tensor([0.9, 0.0, 0.7])
    want = qk.cpq(*tensors, keep, bits=4, backend=backend)
    assert_same_bits(qk.cpq(*tensors, keep - (keep == 0).float(), bits=4, backend=backend), want, "negative")
    large = torch.tensor([1.0, 1.0, 30.0])
    y = qk.cpq(*tensors, large, bits=4, backend=backend)
    assert (y.abs() >= 0.8).sum() > (qk.cpq(*tensors, large.clamp(max=1), bits=4, backend=backend).abs() >= 0.8).sum()


# gates


def test_gates_of_a_seed_are_the_same_everywhere_and_differ_between_seeds():
    logits = torch.full((7,), 1.0)
    for seed in (0, 1, 2**62):
        gates = qk.hard_concrete(logits, seed=seed)
        assert gates.dtype == torch.float32 and ((gates >= 0) & (gates <= 1)).all()
        assert_same_bits(gates, qk.hard_concrete(logits, seed=torch.tensor([seed])), "a tensor")
        assert_same_bits(gates, qk.hard_concrete(logits.double(), seed=seed), "float64 logits")
        torch.manual_seed(5)
        assert_same_bits(gates, qk.hard_concrete(logits, seed=seed), "torch's generator plays no part")
        assert not torch.equal(gates, qk.hard_concrete(logits, seed=seed + 1))
    assert_same_bits(
        qk.hard_concrete(torch.zeros(5), seed=3),
        torch.tensor(PINNED),
        "a promise to checkpoints",
    )


PINNED = [0.265766114, 0.69787854, 0.995247245, 0.0829511732, 0.556228578]


def test_gates_follow_their_distribution():
    """The chance of 0, the chance of 1 and the mean of a million draws, within five standard errors."""
    N = 1 << 20
    for la in (-1.0, 0.7, 2.2):
        gates = qk.hard_concrete(torch.full((N,), la), seed=7).double()
        chance = qk.bit_penalty(torch.tensor([la])).item()
        assert abs((gates > 0).double().mean().item() - chance) < 5 * (chance * (1 - chance) / N) ** 0.5
        one = torch.sigmoid(la - 2 / 3 * torch.tensor(11.0).log()).item()  # s > 1.1 / 1.2
        assert abs((gates >= 1).double().mean().item() - one) < 5 * (one * (1 - one) / N) ** 0.5
    uniform = torch.sort(gates[(gates > 0) & (gates < 1)])[0]
    assert uniform.unique().numel() > 0.5 * uniform.numel()


def test_opcheck_of_their_numbers():
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for count in (0, 1, 1000):
        torch.library.opcheck(torch.ops.qkernels.uniform.default, (torch.tensor([3]), count, "auto"), test_utils=tests)


def test_gates_of_neighboring_seeds_are_independent():
    """The correlation of 4096 pairs, five standard errors."""
    logits = torch.zeros(4)
    draws = torch.stack([qk.hard_concrete(logits, seed=seed) for seed in range(4097)]).double()
    for a, b in ((draws[1:, 0], draws[:-1, 0]), (draws[:, 0], draws[:, 1]), (draws[1:, 0], draws[:-1, 1])):
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1].item()) < 5 / 64


def test_the_gradient_of_a_gate_is_that_of_the_unclamped_sample():
    logits = torch.linspace(-4, 4, 200, dtype=torch.float64)
    for training in (True, False):
        _, (grad,), g = value_and_grads(
            lambda t, training=training: qk.hard_concrete(t, seed=11, training=training), [logits], {}
        )
        gates = qk.hard_concrete(logits, seed=11, training=training).double()
        s = (gates + 0.1) / 1.2
        want = g.double() * 1.2 * s * (1 - s) * (1.5 if training else 1.0)
        inside = (gates > 0) & (gates < 1)
        assert inside.sum() > 50 and (~inside).sum() > 10
        torch.testing.assert_close(grad[inside], want[inside], rtol=1e-5, atol=1e-6)
        assert (grad[~inside] == 0).all()


def test_without_noise_a_gate_is_the_stretched_sigmoid():
    logits = torch.tensor([-6.0, -2.5, -2.3, 0.0, 2.3, 2.5, 6.0])
    want = (torch.sigmoid(logits.double()) * 1.2 - 0.1).clamp(0, 1).float()
    assert_same_bits(qk.hard_concrete(logits, seed=1, training=False), want, "eval")
    assert want[1] == 0 < want[2] and want[4] < 1 == want[5]


def test_a_tensor_seed_compiles_once():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    torch._dynamo.reset()
    fn = torch.compile(qk.hard_concrete, fullgraph=True, backend=counter)
    for seed in range(20):
        assert_same_bits(
            fn(torch.zeros(3), seed=torch.tensor([seed])), qk.hard_concrete(torch.zeros(3), seed=seed), "compiled"
        )
    assert counter.frame_count == 1


def test_the_penalty_is_the_expected_number_of_levels():
    logits = torch.tensor([0.7, -3.0, 2.2], requires_grad=True)
    chance = torch.sigmoid(logits + 2 / 3 * torch.tensor(11.0).log())
    penalty = qk.bit_penalty(logits)
    torch.testing.assert_close(penalty, chance.sum())
    (grad,) = torch.autograd.grad(penalty, logits)
    torch.testing.assert_close(grad, (chance * (1 - chance)).detach())
    assert qk.bit_penalty(torch.tensor([0.7])).item() == pytest.approx(0.9088, abs=5e-5)


REFUSED = [
    (lambda: qk.hard_concrete([1.0], seed=0), TypeError, "hard_concrete: logits must be a float tensor, got list"),
    (
        lambda: qk.hard_concrete(torch.ones(2).int(), seed=0),
        TypeError,
        "logits must be a float tensor, got torch.int32",
    ),
    (lambda: qk.hard_concrete(torch.ones(2), seed=0.5), TypeError, "seed must be an int or an int64 tensor, got float"),
    (lambda: qk.hard_concrete(torch.ones(2), seed=True), TypeError, "seed must be an int or an int64 tensor, got bool"),
    (lambda: qk.hard_concrete(torch.ones(2), seed=torch.ones(2)), TypeError, r"one value, got torch.float32 \[2\]"),
    (lambda: qk.hard_concrete(torch.ones(2), seed=-1), ValueError, r"hard_concrete: seed .* in \[0, 2\*\*63\), got -1"),
    (lambda: qk.hard_concrete(torch.ones(2), seed=2**63), ValueError, "seed must be in .* got 9223372036854775808"),
    (lambda: qk.hard_concrete(torch.ones(2), seed=torch.tensor(-1)), ValueError, "seed must be in .* got -1"),
    (lambda: qk.bit_penalty(torch.ones(2).int()), TypeError, "bit_penalty: logits must be a float tensor"),
]


@pytest.mark.parametrize(("call", "exception", "message"), REFUSED)
def test_refuses_with_reason(call, exception, message):
    with pytest.raises(exception, match=message):
        call()
