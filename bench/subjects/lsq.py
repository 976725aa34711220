"""lsq against eager PyTorch, and against torch's own learnable fake quantization."""

from collections.abc import Iterator

import torch
from torch import Tensor

import qkernels as qk

from .subject import Subject, one, ste


def eager_lsq(x: Tensor, step: Tensor, bits: int) -> Tensor:
    v = (x / step[:, None].to(torch.float32)).clamp(-(1 << bits - 1), (1 << bits - 1) - 1)
    return (ste(v.round(), v) * step[:, None]).to(x.dtype)


def torch_fake_quantize(x: Tensor, step: Tensor, bits: int) -> Tensor:
    zero_point = torch.zeros(1, device=x.device, requires_grad=True)
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return torch._fake_quantize_learnable_per_tensor_affine(x, step, zero_point, low, high, 1.0)


def subjects(quick: bool) -> Iterator[Subject]:
    for bits in (4,) if quick else (2, 4, 8):
        yield Subject(
            "lsq", "per tensor", bits,
            lambda x, p, b=bits: qk.lsq(x, p, bits=b),
            lambda x, p, b=bits: eager_lsq(x, p, b), one(3.0 / 2**bits),
            lambda x, p, b=bits: torch_fake_quantize(x, p, b),
        )  # fmt: skip
