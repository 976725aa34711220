"""Calling an autograd Function at the price of a small kernel."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _exporting_flag() -> bool:
    return torch.compiler._is_exporting_flag


# torch 2.11's own is True wherever torch.compile traces, too; that of 2.13 is not.
is_exporting = torch.compiler.is_exporting if torch.__version__ >= (2, 13) else _exporting_flag


def once_differentiable(backward: Callable) -> Callable:
    """torch's decorator of this name, whose checks are skipped where no second derivative can be asked for."""
    checked = torch.autograd.function.once_differentiable(backward)

    @functools.wraps(backward)
    def call(ctx, *grads):
        return checked(ctx, *grads) if torch.is_grad_enabled() else backward(ctx, *grads)

    return call


def no_autocast(x: Tensor) -> AbstractContextManager:
    """No autocast on x's device; the meta device has none.

    What asks torch whether a device has autocast cannot be traced by torch.compile of 2.11.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def autocast(x: Tensor) -> Tensor:
    """x in the dtype of the autocast that is in force on its device, if there is one."""
    kind = x.device.type
    if x.dtype == torch.float64 or x.is_meta or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


def is_inference(*tensors: Tensor) -> bool:
    """Whether the value is all that is asked for: no gradient to these tensors, no torch.func, no compiler."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


def call(function: type[torch.autograd.Function], forward: Callable, *args):
    """``function.apply(*args)`` where something may ask for a derivative, else ``forward(*args)``.

    function is in setup_context style, its forward without default arguments. torch binds the arguments of such a
    Function to its signature at every call, which costs more than a kernel does on a small tensor; only torch.func and
    the compiler need it. An exported graph is for inference and has no derivatives.
    """
    if is_exporting():
        return forward(*args)
    if torch.compiler.is_compiling():
        return function.apply(*args) if _needed(args) else forward(*args)
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return function.apply(*args)  # there requires_grad says nothing
    if _needed(args):
        return super(torch.autograd.Function, function).apply(*args)
    return forward(*args)


def _needed(args: tuple) -> bool:
    if torch.is_grad_enabled():
        for a in args:  # not any(...): a generator costs more than the checks
            if isinstance(a, Tensor) and a.requires_grad:
                return True
    return False
