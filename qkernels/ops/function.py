"""Autograd Functions that cost little to call."""

import inspect

import torch


def function(cls: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Class decorator: torch asks for forward's signature at every call, and working it out costs more than a small
    kernel does; so it is worked out once."""
    cls.forward.__signature__ = inspect.signature(cls.forward)
    return cls
