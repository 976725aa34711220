"""channel_error, and the activation quantizer that balances the channels' errors with it."""

import copy

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import backends
from qkernels.nn import BalancedQuantizer, QuantConv2d, QuantLinear
from qkernels.ops.channel_error import reference
from qkernels.ops.soft_assign.config import BALANCES, balanced_step, objective
from qkernels.testing.compare import assert_sum

from .isas import ALL

BACKENDS = [b for b in ("cpu", "triton", "reference") if b in backends.backends_of("channel_error")]
SHAPES = [
    ((0, 3), 1), ((1,), 0), ((17,), 0), ((5, 7), 1), ((5, 7), 0), ((300, 33), -1), ((130, 16), -1), ((1, 40, 1), 1),
    ((2, 3, 100, 90), 1), ((3, 5, 4, 4), 1), ((2, 6, 8, 8), 1), ((2, 3, 5, 7), 2), ((64, 300), 0), ((2, 2, 9000), 1),
]  # fmt: skip


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b != "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits, signed", [(2, False), (8, False), (1, False), (4, True)])
def test_the_sums_are_the_references(backend, dtype, bits, signed):
    for shape, dim in SHAPES:
        x, step = randn(*shape).to(dtype), torch.tensor([0.3])
        got = qk.channel_error(x, step, bits=bits, dim=dim, signed=signed, backend=backend)
        want = qk.channel_error(x, step, bits=bits, dim=dim, signed=signed, backend="reference")
        grid = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        truth = reference.channel_error(x.double(), step, *grid, dim % x.dim())
        for g, w, t in zip(got, want, truth, strict=True):
            assert g.shape == (shape[dim],) and g.dtype == torch.float32
            assert_sum(g, w, t, 2 * t.abs(), f"{shape} {dim}")  # a term is rounded as a product, and when it is added


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sums_give_the_squared_error_for_any_step(backend):
    x, step = randn(4, 6, 9, 9), torch.tensor([0.25])
    A, T, U = (s.double() for s in qk.channel_error(x, step, bits=3, dim=1, backend=backend))
    codes = (x / step).round().clamp(0, 7).double()
    for d in (0.25, 0.2, 0.4):
        error = (x.double() - codes * d).square().sum((0, 2, 3))
        torch.testing.assert_close(A - 2 * d * T + d * d * U, error, rtol=1e-5, atol=0)  # float32 sums of like size


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_stays_in_its_channel_and_a_collapsed_step_shows(backend):
    for x, dim in ((randn(8, 5, 10, 10), 1), (randn(40, 5), 1)):
        x.select(dim, 3)[0] = torch.nan
        for s in qk.channel_error(x, torch.tensor([0.3]), bits=2, dim=dim, backend=backend):
            assert s.isnan().tolist() == [False, False, False, True, False]
        for bad in (0.0, -1.0, torch.nan):
            _, T, U = qk.channel_error(x, torch.tensor([bad]), bits=2, dim=dim, backend=backend)
            assert T.isnan().all() and U.isnan().all()


def test_bits_do_not_depend_on_threads_or_instruction_set(isa):
    before = torch.get_num_threads()
    try:
        for shape, dim in (((64, 3, 70, 70), 1), ((3000, 70), 1)):
            results = []
            for name in ALL:
                isa(name)
                for threads in (1, 2, 5):
                    torch.set_num_threads(threads)
                    results.append(torch.stack(qk.channel_error(randn(*shape), torch.tensor([0.3]), bits=4, dim=dim)))
            assert all(torch.equal(r, results[0]) for r in results)
    finally:
        torch.set_num_threads(before)


def test_it_has_no_gradient_and_passes_opcheck():
    x = randn(4, 3).requires_grad_()
    step = torch.tensor([0.3], requires_grad=True)
    assert not any(s.requires_grad for s in qk.channel_error(x, step, bits=4, dim=1))
    for backend in BACKENDS:
        op = torch.ops.qkernels.channel_error.default
        args = (x.detach(), step.detach(), 0, 15, 1, backend)
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"))


X, STEP = torch.randn(4, 3), torch.tensor([0.3])
REFUSED = [
    (lambda: qk.channel_error(X, STEP, bits=9, dim=1), ValueError, r"bits must be between 1 and 8 \(unsigned\), got 9"),
    (lambda: qk.channel_error(X, STEP, bits=1, dim=1, signed=True), ValueError, "bits must be between 2 and 8"),
    (lambda: qk.channel_error(X, STEP, bits=4, dim=2), ValueError, r"dim must be a dimension of x \[4, 3\], got 2"),
    (lambda: qk.channel_error(X, STEP, bits=4, dim=1.0), TypeError, "dim must be an int, got float"),
    (lambda: qk.channel_error(X, torch.ones(4), bits=4, dim=1), ValueError, r"step must have shape \[1\], got \[4\]"),
    (lambda: qk.channel_error(X, 0.3, bits=4, dim=1), TypeError, r"step must be a Tensor of shape \[P\], got float"),
    (lambda: qk.channel_error(X.int(), STEP, bits=4, dim=1), TypeError, "x must be a float tensor, got torch.int32"),
    (
        lambda: qk.channel_error(X, STEP, bits=4, dim=1, backend="cuda"),
        NotImplementedError,
        "backend='cuda' cannot run: ",
    ),
    (lambda: torch.ops.qkernels_cpu.channel_error(X.t(), STEP, 0, 3, 0), RuntimeError, "x must be contiguous"),
    (lambda: torch.ops.qkernels_cpu.channel_error(X, STEP, 0, 3, 2), RuntimeError, "dim must be a dimension"),
    (lambda: torch.ops.qkernels_cpu.channel_error(X, STEP, 1, 3, 1), RuntimeError, "between them, got 1 and 3"),
    (lambda: torch.ops.qkernels_cpu.channel_error(X, torch.ones(2), 0, 3, 1), RuntimeError, "step must have 1 value"),
]


@pytest.mark.parametrize("call, exception, message", REFUSED)
def test_refuses_with_reason(call, exception, message):
    with pytest.raises(exception, match=message):
        call()


# the step


def loud_and_quiet() -> torch.Tensor:
    """[2000, 6]: five channels of unit deviation and one 20 times as loud, after a ReLU."""
    return (randn(2000, 6) * torch.tensor([1.0, 1, 1, 1, 1, 20])).relu()


def relative_error(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (y - x).square().sum(0) / x.square().sum(0)


def balanced(balance: str, x: torch.Tensor, bits: int = 2) -> BalancedQuantizer:
    quantizer = qk.DQ(bits=bits, balance=balance).module(None, dtype=torch.float32, device="cpu")
    quantizer.calibrate(x)
    return quantizer.eval()


def test_a_loud_channel_takes_the_plain_objective_and_not_the_balanced_ones():
    """What the paper's abstract says of quantizers that treat all channels equally."""
    x = loud_and_quiet()
    plain = relative_error(x, balanced("plain", x)(x))
    assert (plain[:5] > 0.99).all() and plain[5] < 0.05, "all but the loud channel are rounded to 0"
    for balance in ("normalized", "sqrt", "log"):
        error = relative_error(x, balanced(balance, x)(x))
        assert (error[:5] < 0.08).all() and error[5] > 0.5, balance


@pytest.mark.parametrize("balance", BALANCES)
@pytest.mark.parametrize("bits", [2, 4])
def test_the_step_is_where_a_search_finds_the_least(balance, bits):
    x = randn(3000, 5) * torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0])
    quantizer = balanced(balance, x, bits)
    assert quantizer.config.signed

    def value(step):
        sums = qk.channel_error(x, step, bits=bits, dim=1, signed=True)
        return objective(sums, step, balance).item()

    best = min(value(torch.tensor([s])) for s in torch.linspace(0.02, 4, 800).tolist())
    assert value(quantizer.step) <= best + 1e-3 * abs(best)


def test_the_closed_form_is_the_zero_of_the_derivative():
    x, step = loud_and_quiet().double(), torch.tensor([0.8]).double().requires_grad_()
    codes = (x / step.detach()).round().clamp(0, 3)
    sums = ((x * x).sum(0), (codes * x).sum(0), (codes * codes).sum(0))
    for balance in BALANCES:  # the objective, to first order in the errors, is the weighted sum that the step minimizes
        slope = torch.autograd.grad(objective(sums, step, balance).sum(), step)[0]
        better = balanced_step(sums, step.detach(), balance)
        assert (slope * (better - step.detach().float())) < 0, balance
    plain = balanced_step(sums, step.detach(), "plain").double()
    assert objective(sums, plain, "plain") < min(objective(sums, plain * f, "plain") for f in (0.999, 1.001))


def test_dead_channels_and_odd_batches_leave_the_step_alone():
    x = loud_and_quiet()[:, :5]
    with_dead = torch.cat([x, torch.zeros(2000, 3)], 1)
    a, b = balanced("normalized", x), balanced("normalized", with_dead)
    torch.testing.assert_close(a.step, b.step)
    for batch in (x.clone().index_fill(0, torch.tensor([3]), torch.nan), x * torch.inf, torch.zeros(4, 5), x[:0]):
        before = a.step.clone()
        a.train()(batch)
        assert torch.equal(a.step, before)


def test_the_step_follows_the_batches_in_training_only():
    x = randn(4000, 4).relu()
    quantizer = balanced("normalized", x, bits=4)
    start = quantizer.step.item()
    for _ in range(3):
        quantizer(3 * x)
    assert quantizer.step.item() == start
    quantizer.train()
    y = quantizer(3 * x)
    assert torch.equal(y, qk.lsq(3 * x, torch.tensor([start]), bits=4, signed=False)), (
        "the batch itself has the old step"
    )
    best = balanced_step(
        qk.channel_error(3 * x, torch.tensor([start]), bits=4, dim=1), torch.tensor([start]), "normalized"
    )
    torch.testing.assert_close(quantizer.step, 0.9 * start + 0.1 * best)
    for _ in range(200):
        quantizer(3 * x)
    assert 2.5 * start < quantizer.step.item() < 3.5 * start


def test_x_gets_the_straight_through_gradient_and_the_step_none():
    x = torch.tensor([[-1.0, 0.2, 0.9, 50.0]], requires_grad=True)
    quantizer = balanced("normalized", x.detach().relu())
    y = quantizer(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    inside = (x >= 0) & (x <= 3 * quantizer.step)
    assert torch.equal(dx, inside.float()) and not quantizer.step.requires_grad
    assert [p for group in qk.param_groups(quantizer, 0.1) for p in group["params"]] == []


def test_channels_are_dimension_one_of_images_and_the_last_of_others():
    loud = torch.tensor([1.0, 1, 20])
    image = (randn(4, 3, 8, 8) * loud[:, None, None]).relu()
    rows = image.movedim(1, -1)
    want = balanced("normalized", image).step
    for same in (rows.reshape(-1, 3), rows.reshape(4, 64, 3)):
        torch.testing.assert_close(balanced("normalized", same).step, want)


def test_a_layer_with_it_trains_converts_and_resumes(tmp_path):
    torch.manual_seed(0)
    conv = QuantConv2d.from_float(nn.Conv2d(3, 4, 3), weight=qk.DQ(bits=4), activation=qk.DQ(bits=4, balance="log"))
    linear = QuantLinear.from_float(nn.Linear(144, 5), weight=qk.DQ(bits=3), activation=qk.DQ(bits=4))
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)
    x = randn(2, 3, 8, 8)
    model(x).square().sum().backward()
    assert conv.activation_quantizer.config.signed and not linear.activation_quantizer.config.signed
    again = copy.deepcopy(model)
    with torch.no_grad():
        for p in again.parameters():
            p.mul_(2)
    again.load_state_dict(model.state_dict())
    model.eval(), again.eval()
    assert torch.equal(again(x), model(x))
    qk.convert_(model)
    qk.save_packed(model, tmp_path)
    fresh = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    qk.load_packed(fresh, tmp_path).eval()
    assert torch.equal(fresh(x), model(x))
    assert fresh[0].activation_quantizer.config == qk.DQ(bits=4, balance="log", signed=True)
