"""One call of an op on one backend against its reference."""

import torch
from torch import Tensor

from .cases import Case
from .compare import assert_elementwise_grad, assert_same_bits, assert_soft, assert_sum, value_and_grads
from .others import Other


def usable(case: Case | Other, backend: str, dtype: torch.dtype, device: str) -> bool:
    """Whether the backend can run the op on this dtype and device, and its results can be judged."""
    if backend == "triton" and dtype == torch.bfloat16 and device == "cpu":
        return False  # Triton's interpreter truncates float32 -> bfloat16; a GPU rounds
    return case.refusal(backend, torch.empty(0, dtype=dtype, device=device)) is None


def check(case: Case, tensors: tuple[Tensor, ...], kwargs: dict, backend: str) -> None:
    """Value, dx and the parameters' gradients of one call against the reference and float64.

    Raises:
        AssertionError: what differs, where and by how much.
    """
    what = f"{case} {backend} {list(tensors[0].shape)} P={tensors[1].shape[0]} {kwargs}"
    y, grads, g = value_and_grads(case.fn, tensors, kwargs | {"backend": backend})
    y_ref, grads_ref, _ = value_and_grads(case.reference, tensors, kwargs)
    x = tensors[0]
    if case.is_soft(kwargs) or case.soft_grad:
        wide = [t.double() for t in tensors]
        y_true, grads_true, _ = value_and_grads(case.reference, wide, kwargs, g=g)
    if case.is_soft(kwargs):
        assert_soft(y, y_ref, y_true, case.value_operand(**kwargs), what)
    else:
        assert_same_bits(y, y_ref, what)
    operands = case.operands(tensors, kwargs)
    if case.soft_grad:
        assert_soft(grads[0], grads_ref[0], grads_true[0], g.double().abs() * operands[0], f"{what} dx")
    else:
        assert_elementwise_grad(grads[0], grads_ref[0], what)
        # the terms of each sum: autograd through one parameter value per element
        P = max(q.shape[0] for q in tensors[1:])
        each = [x.reshape(-1), *(q.expand(P).repeat_interleave(x.numel() // P) for q in tensors[1:])]
        if x.numel():
            _, terms, _ = value_and_grads(lambda *a: case.reference(*a, **kwargs).reshape(x.shape), each, {}, g=g)
    for i, p in enumerate(tensors[1:], start=1):
        if not x.numel():
            assert (grads[i] == 0).all()
            continue
        blocks = case.blocks(tensors, i)
        truth = grads_true[i] if case.soft_grad else terms[i].double().reshape(blocks, -1).sum(1)
        size = g.double().abs().reshape(blocks, -1).sum(1) * operands[i]
        size = size.reshape(-1, *[1] * (p.dim() - 1)) if blocks > 1 else size.reshape([1] * p.dim())
        assert_sum(grads[i], grads_ref[i], truth, size.expand(p.shape), f"{what} gradient {i}")
