"""How close is close: elementwise outputs to the bit, sums by the 2x rule. No test picks a tolerance of its own."""

import torch
from torch import Tensor


def leaves(tensors) -> list[Tensor]:
    """Independent autograd leaves with the same values and strides (a slice stays a slice)."""
    copies = []
    for t in tensors:
        storage = t.detach().as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0).clone()
        copies.append(storage.as_strided(t.shape, t.stride(), t.storage_offset()).requires_grad_(t.is_floating_point()))
    return copies


def value_and_grads(fn, tensors, kwargs, seed=1, g=None) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """(fn(*tensors), gradients of every tensor for g, that g); g is one fixed random one unless given."""
    tensors = leaves(tensors)
    y = fn(*tensors, **kwargs)
    g = (torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)) if g is None else g).to(y)
    return y.detach(), torch.autograd.grad(y, tensors, g), g


def assert_same_bits(got: Tensor, want: Tensor, what: str) -> None:
    """Equal shape, dtype, values, signs of zero, and NaN in the same places."""
    assert got.shape == want.shape and got.dtype == want.dtype, (
        f"{what}: {got.shape} {got.dtype}, {want.shape} {want.dtype}"
    )
    same = ((got == want) & (got.signbit() == want.signbit())) | (got.isnan() & want.isnan())
    if not same.all():
        i = int((~same).reshape(-1).nonzero()[0])
        raise AssertionError(
            f"{what}: {int((~same).sum())} differ, first at {i}: {got.reshape(-1)[i]} not {want.reshape(-1)[i]}"
        )


def assert_elementwise_grad(got: Tensor, want: Tensor, what: str) -> None:
    """A gradient computed for each element alone: the reference's chain has up to 4 roundings more than a kernel."""
    eps = torch.finfo(want.dtype).eps
    torch.testing.assert_close(got, want, rtol=4 * eps, atol=0, equal_nan=True, msg=lambda m: f"{what}: {m}")


def assert_soft(got: Tensor, reference: Tensor, truth: Tensor, scale: Tensor | float, what: str) -> None:
    """The 2x rule for values that a transcendental function enters: as close to float64 as twice the reference is.

    Errors are measured in units of scale, the size of the operands that make up a value (they may cancel), and the
    reference's is its worst over the tensor. Four roundings of the operands are granted beside it: half of the
    reference's values are exact by luck. NaN and infinities must be in the same places.
    """
    scale = torch.as_tensor(scale, dtype=torch.float64).expand_as(truth)
    assert got.shape == reference.shape and got.dtype == reference.dtype, f"{what}: {got.shape} {got.dtype}"
    finite = truth.isfinite()
    odd = ~finite & ~((got == truth) | (got.isnan() & truth.isnan()))
    assert not odd.any(), f"{what}: {got[odd][:3]} not {truth[odd][:3]}"
    if not finite.any():
        return
    error, own = ((t.double() - truth)[finite].abs() for t in (got, reference))
    scale, size = scale[finite], truth[finite].abs()
    worst = (own / scale.clamp_min(torch.finfo(torch.float32).tiny)).max()
    allowed = 2 * worst * scale + 4 * torch.finfo(torch.float32).eps * scale + torch.finfo(got.dtype).eps * size
    beyond = error - allowed
    i = int(beyond.argmax())
    assert beyond[i] <= 0, (
        f"{what}: {got[finite][i]} not {truth[finite][i]}, off by {error[i]:.3g}, {allowed[i]:.3g} allowed"
    )


def assert_sum(got: Tensor, reference: Tensor, truth: Tensor, operands: Tensor, what: str) -> None:
    """Twice the reference's own error against float64, plus one float32 rounding of each operand that entered the sum.

    operands: per value, the sum of the absolute values of what was added.
    """
    error = (got.double() - truth).abs()
    allowed = 2 * (reference.double() - truth).abs() + torch.finfo(torch.float32).eps * operands
    worst = (error - allowed).max() if error.numel() else torch.tensor(-1.0)
    assert (error <= allowed).all() or worst <= 0, f"{what}: off by {error.max():.3g}, allowed {allowed.min():.3g}"
