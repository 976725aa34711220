"""Laws of cpq, and what plain implementations of its formulas get wrong far off the grid and in low precision."""

from decimal import Decimal, getcontext

import pytest
import torch

import qkernels as qk
from qkernels import backends
from qkernels.ops.cpq import op, reference
from qkernels.testing.compare import assert_same_bits, value_and_grads

EPS, TINY = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).tiny
ESTIMATORS = [("argmax", False), ("argmax", True), ("full", False), ("full", True)]
BACKENDS = [b for b in backends.backends_of("cpq") if backends.refusal("cpq", b, torch.empty(0)) is None]
getcontext().prec = 150  # S(a) - S(b) loses 87 digits where both are within e**-200 of 1


def tensors(x, step, rho):
    step = torch.tensor([step])
    return torch.as_tensor(x, dtype=torch.float32).reshape(-1), step, step / rho


# the definition in 150 digits


def exact(x, step, sigma, bits, signed, full, truncate):
    """(code, dx, dstep, dsigma) of one element for g = 1, straight from the definition; and how large its terms are."""
    low, high = op.grid("cpq", bits, signed, False)
    k = int((torch.tensor(x) / torch.tensor(step)).clamp(low, high).round())
    x, step, sigma = (Decimal(v) for v in (x, step, sigma))

    def interval(a, b):
        """S(b) - S(a) for edges in codes, and its derivatives by x, step and sigma."""
        value, grads = Decimal(0), [Decimal(0)] * 3
        for edge, sign in ((b, 1), (a, -1)):
            t = (step * edge - x) / sigma
            e = (-abs(t)).exp()
            s = 1 / (1 + e) if t > 0 else e / (1 + e)
            f = e / (1 + e) ** 2
            value += sign * s
            for i, d in enumerate((Decimal(-1), Decimal(edge), -t)):
                grads[i] += sign * f * d / sigma
        return value, grads

    half = Decimal("0.5")
    Z, dZ = interval(low - half, high + half) if truncate else (Decimal(1), [Decimal(0)] * 3)
    total, size = [Decimal(0)] * 3, [Decimal(0)] * 3
    for n in range(low, high + 1) if full else [k]:
        p, dp = interval(n - half, n + half)
        for i in range(3):
            total[i] += n * (dp[i] - p / Z * dZ[i]) / Z
            size[i] += abs(n) * (abs(dp[i]) + p / Z * abs(dZ[i])) / Z
    dx, ds, dsigma = (step * v for v in total)
    return k, float(dx), float(k + ds), float(dsigma), [float(step * v) for v in size]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator, truncate", ESTIMATORS)
@pytest.mark.parametrize("rho", [0.5, 3.0, 20.0, 200.0])
def test_gradients_are_relatively_right_far_off_the_grid(estimator, truncate, rho, backend):
    """dx to a few roundings of its own size, from the middle of the grid to where it is no float32 any more.

    An exponent t has a relative error of 3 roundings, which makes one of 3 |t| in e**-t.
    """
    for bits, signed in ((1, False), (2, True), (3, True)):
        low, high = op.grid("cpq", bits, signed, False)
        off = [0.3, 3.0, 15.0, 19.0, 21.0, 40.0, 70.0, 80.0]  # sigma from the outermost edge
        inside = [low + 0.2, (low + high) / 2 + 0.3, high - 0.4]
        codes = [high + 0.5 + v / rho for v in off] + [low - 0.5 - v / rho for v in off] + inside
        x, step, sigma = tensors(torch.tensor(codes) * 0.3, 0.3, rho)
        kwargs = dict(bits=bits, signed=signed, estimator=estimator, truncate=truncate)
        blocks = (x, step.repeat(len(codes)), sigma.repeat(len(codes)))  # of one element each
        y, got, _ = value_and_grads(qk.cpq, blocks, kwargs | {"backend": backend}, g=torch.ones(len(codes)))
        for i, one in enumerate(zip(*blocks, strict=True)):
            k, dx, ds, dsigma, size = exact(*(t.item() for t in one), bits, signed, estimator == "full", truncate)
            t = max(off[i % len(off)], rho) + 1 if i < 2 * len(off) else 2 * rho
            assert y[i] == (torch.tensor(float(k)) * step).item()
            if backend == "reference":
                continue  # in float32 it is right to the size of its terms only
            loss, least = EPS * 8 * (2 + t) / min(rho, 1), TINY * rho * (1 + rho + t)
            assert abs(got[0][i].item() - dx) <= loss * abs(dx) + least, (bits, codes[i], got[0][i].item(), dx)
            for value, want, s in ((got[1][i], ds, size[1] + abs(k)), (got[2][i], dsigma, size[2])):
                assert abs(value.item() - want) <= loss * s + least, (bits, codes[i], value.item(), want)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("estimator, truncate", ESTIMATORS)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, on which Triton's interpreter runs
def test_gradients_are_right_at_the_ends_of_float32(estimator, truncate, backend):
    """Steps and sigmas that are denormal, tiny or huge, and where one over the other is; the codes are small."""
    for step, sigma in (
        (1e-44, 1e-44), (1e-40, 3e-41), (1e-38, 1e-39), (1e37, 3e36), (1e-44, 1e-3), (1e-40, 1e-30), (1e-30, 1e30),
        (1e37, 1e30), (1.0, 1e-30), (1.0, 1e-44), (1e-3, 1e3),
    ):  # fmt: skip
        step, sigma = torch.tensor([step]), torch.tensor([sigma])
        off = 20.0 if step < 100 * sigma else 7.4  # else it is too far off the grid for 150 digits
        x = torch.tensor([0.3, 1.2, -2.6, 4.4, -7.9, off]) * step
        kwargs = dict(bits=4, estimator=estimator, truncate=truncate, backend=backend)
        _, got, _ = value_and_grads(qk.cpq, (x, step.repeat(6), sigma.repeat(6)), kwargs, g=torch.ones(6))
        for i in range(6):
            want = exact(x[i].item(), step.item(), sigma.item(), 4, True, estimator == "full", truncate)
            for value, true, size in zip(got, want[1:4], (8, 64, 64), strict=True):
                assert abs(value[i].item() - float(true)) <= 1e-4 * size, (step, sigma, x[i] / step, value[i], true)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("estimator, truncate", ESTIMATORS)
@pytest.mark.parametrize("rho", [0.01, 0.5, 3.0, 20.0, 200.0])
def test_nothing_is_nan_and_the_side_is_right_5000_sigma_off(estimator, truncate, rho, backend):
    """An argmax over computed probabilities flips there to the other end of the grid; p / Z is 0 / 0."""
    far = torch.tensor([5000.0, 500.0, 100.0, 1e30, torch.inf])
    for bits in (2, 8):
        high = 2 ** (bits - 1) - 1
        x, step, sigma = tensors(torch.cat([0.3 * (high + 0.5 + far / rho), -0.3 * (high + 1.5 + far / rho)]), 0.3, rho)
        kwargs = dict(bits=bits, estimator=estimator, truncate=truncate, backend=backend)
        y, grads, _ = value_and_grads(qk.cpq, (x, step, sigma), kwargs)
        assert torch.equal(y, (torch.tensor([high] * 5 + [-high - 1] * 5) * step))
        assert all(grad.isfinite().all() for grad in grads)
        assert (grads[0] == 0).all() or backend == "reference"  # there the terms cancel to their rounding


@pytest.mark.parametrize("estimator, truncate", ESTIMATORS)
@pytest.mark.parametrize("rho", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("bits, signed", [(1, False), (2, True), (4, True), (4, False)])
def test_the_reference_is_the_materialised_definition(bits, signed, rho, estimator, truncate):
    """Sigmoid differences for every code, in float64, where that is accurate: inside the grid."""
    low, high = op.grid("cpq", bits, signed, False)
    x = torch.rand(500, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    x, step, sigma = (t.double() for t in tensors(x * 0.3, 0.3, rho))

    def plain(x, step, sigma):
        n = torch.arange(low, high + 1, dtype=torch.float64)

        def mass(a, b):
            low, high = ((step * edge - x[:, None]) / sigma for edge in (a, b))
            return torch.sigmoid(high) - torch.sigmoid(low)

        p = mass(n - 0.5, n + 0.5)
        if truncate:
            p = p / mass(torch.tensor([low - 0.5]), torch.tensor([high + 0.5]))
        y = torch.nn.functional.one_hot(p.detach().argmax(1), len(n)).double()
        weight = torch.ones_like(p) if estimator == "full" else y
        return ((y + weight * (p - p.detach())) * (n * step)).sum(1)

    def ours(x, step, sigma):
        return reference.cpq(x, step, sigma, low, high, estimator == "full", truncate)

    y, grads, g = value_and_grads(ours, (x, step, sigma), {})
    want, grads_want, _ = value_and_grads(plain, (x, step, sigma), {}, g=g)
    torch.testing.assert_close(y, want)
    for got, true in zip(grads, grads_want, strict=True):
        torch.testing.assert_close(got, true, rtol=1e-9, atol=1e-9 * true.abs().max().item())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_forward_is_lsq_whatever_sigma_is(backend, dtype):
    if backend == "triton" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates float32 -> bfloat16")
    x = torch.randn(2000, generator=torch.Generator().manual_seed(0)).to(dtype)
    step = torch.tensor([0.2])
    for bits, signed in ((4, True), (2, True), (8, False), (1, False)):
        want = qk.lsq(x, step, bits=bits, signed=signed, backend="reference")
        for sigma in (1e-3, 0.1, 10.0):
            got = qk.cpq(x, step, torch.tensor([sigma]), bits=bits, signed=signed, backend=backend)
            assert_same_bits(got, want, f"{bits} {signed} {sigma}")


@pytest.mark.parametrize("estimator, truncate", ESTIMATORS)
def test_gradients_depend_on_ratios_only(estimator, truncate):
    """x, step and sigma twice as large: the same dx to the bit, and so dstep and dsigma."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    kwargs = dict(bits=4, estimator=estimator, truncate=truncate)
    step = torch.tensor([0.2])
    for rho in (0.7, 3.0):
        _, want, _ = value_and_grads(qk.cpq, (x, step, step / rho), kwargs)
        for factor in (2.0**-20, 2.0, 2.0**30):
            _, got, _ = value_and_grads(qk.cpq, (x * factor, step * factor, step / rho * factor), kwargs)
            for a, b in zip(got, want, strict=True):
                assert_same_bits(a, b, f"{factor}")


@pytest.mark.parametrize("estimator, truncate", ESTIMATORS)
def test_both_sides_of_zero_are_alike(estimator, truncate):
    """Sigmoid differences cancel on one side of a level: there a plain form has no correct digit."""
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    g = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    for rho in (0.5, 3.0, 50.0):
        step = torch.tensor([0.2])
        kwargs = dict(bits=4, symmetric=True, estimator=estimator, truncate=truncate)
        _, a, _ = value_and_grads(qk.cpq, (x, step, step / rho), kwargs, g=g)
        _, b, _ = value_and_grads(qk.cpq, (-x, step, step / rho), kwargs, g=g)
        torch.testing.assert_close(a[0], b[0], rtol=8 * EPS, atol=8 * EPS * rho)


def test_a_weight_of_code_zero_has_no_gradient_by_argmax():
    x = torch.linspace(-0.099, 0.099, 50)
    for truncate in (False, True):
        kwargs = dict(bits=4, truncate=truncate)
        _, grads, _ = value_and_grads(qk.cpq, (x, torch.tensor([0.2]), torch.tensor([0.05])), kwargs)
        assert all((grad == 0).all() for grad in grads)
    _, grads, _ = value_and_grads(
        qk.cpq, (x, torch.tensor([0.2]), torch.tensor([0.05])), dict(bits=4, estimator="full")
    )
    assert (grads[0] != 0).all()


def test_symmetric_leaves_out_the_most_negative_code():
    x = torch.linspace(-3, 3, 201)
    y = qk.cpq(x, torch.tensor([0.25]), torch.tensor([0.1]), bits=3, symmetric=True)
    assert sorted(set((y / 0.25).tolist())) == [-3, -2, -1, 0, 1, 2, 3]
    hardened = qk.harden("cpq", x, torch.tensor([0.25]), torch.tensor([0.1]), bits=3, symmetric=True)
    assert hardened.levels.tolist() == [-3, -2, -1, 0, 1, 2, 3]
