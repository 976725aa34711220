"""asq with its adapter, as a layer runs it, against the same in eager PyTorch."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import qkernels as qk
from qkernels.nn import AdaptiveStep

from .subject import Subject, ste

SHAPE = (32, 64, 56, 56)  # the input of a 3 x 3 convolution of ResNet-18's first stage, batch 32
NAMES = ("step", "adapter.0.weight", "adapter.0.bias", "adapter.2.weight", "adapter.2.bias")


def eager_asq(x: Tensor, step: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, bits: int) -> Tensor:
    top = (1 << bits) - 1
    h = F.linear(F.linear(x.float().mean((2, 3)), w1, b1).relu(), w2, b2)
    beta = h.relu().clamp(min=1e-8).view(-1, 1, 1, 1)
    kappa = (top * x[0].numel()) ** -0.5
    s = ((step - step * kappa).detach() + step * kappa) * beta
    v = (x.float() / s).clamp(0, top)
    return (ste(v.round(), v) * s).to(x.dtype)


def quantizer(bits: int) -> AdaptiveStep:
    q = AdaptiveStep(qk.ASQ(bits=bits, signed=False), SHAPE[1], -3)
    q.calibrated = True
    return q


def parameters() -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    state = quantizer(4).state_dict()
    return torch.tensor([0.1]), *(state[name] for name in NAMES[1:])


def subjects(quick: bool) -> Iterator[Subject]:
    for bits in (4,):
        q = quantizer(bits)

        def ours(x: Tensor, *params: Tensor, q: AdaptiveStep = q) -> Tensor:
            return torch.func.functional_call(q.to(x.device), dict(zip(NAMES, params, strict=True)), (x,))

        yield Subject(
            "asq", "with adapter, a batch of 32", bits, ours,
            lambda x, *p, b=bits: eager_asq(x, *p, b),
            parameters, shape=SHAPE, soft=True, kernels="lsq",
        )  # fmt: skip
