"""Calling an autograd Function at the price of a small kernel."""

import torch


def apply(function: type[torch.autograd.Function], *args):
    """``function.apply(*args)``, for Functions in setup_context style whose forward has no default arguments.

    torch binds the arguments to the forward's signature at every call, which costs more than a kernel does on a small
    tensor; only torch.func and the compiler need it.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)
