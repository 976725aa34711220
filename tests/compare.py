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


def value_and_grads(fn, tensors, kwargs, seed=1) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """(fn(*tensors), gradients of every tensor for one fixed random g, that g)."""
    tensors = leaves(tensors)
    y = fn(*tensors, **kwargs)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed)).to(y)
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


def assert_sum(got: Tensor, reference: Tensor, truth: Tensor, operands: Tensor, what: str) -> None:
    """Twice the reference's own error against float64, plus one float32 rounding of each operand that entered the sum.

    operands: per value, the sum of the absolute values of what was added.
    """
    error = (got.double() - truth).abs()
    allowed = 2 * (reference.double() - truth).abs() + torch.finfo(torch.float32).eps * operands
    worst = (error - allowed).max() if error.numel() else torch.tensor(-1.0)
    assert (error <= allowed).all() or worst <= 0, f"{what}: off by {error.max():.3g}, allowed {allowed.min():.3g}"
