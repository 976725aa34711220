"""Other low-bit matmuls to stand beside ours: functions of x, our weight and whether it stays in the caches.

They give a call ``run(i)`` with copy i of the weight, or None where they cannot run. Their levels are their own, so the
values are others; the bytes read are as many.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from qkernels.pack import LutWeight

BETWEEN = 256 << 20  # bytes of weights to walk over before one is used again, where the caches shall not hold it

Run = Callable[[int], Tensor]


def copies(tensor: Tensor, hot: bool) -> list[Tensor]:
    return [tensor] + [tensor.clone() for _ in range(0 if hot else BETWEEN // tensor.nbytes)]


def torch_int4(x: Tensor, w: LutWeight, hot: bool) -> Run | None:
    """torch's own kernels for uniform levels; on a GPU tinygemm."""
    N, K = w.shape
    if w.bits != 4 or w.group_size not in (32, 64, 128, 256):
        return None
    scale = w.scales().T.to(x.dtype)  # [G, N]
    scale_and_zero = torch.stack((scale, torch.zeros_like(scale)), -1).contiguous()
    if x.is_cuda:
        if x.dtype != torch.bfloat16 or N % 8 or K % 128:
            return None
        codes = w.unpack()
        packed = torch.ops.aten._convert_weight_to_int4pack(codes[:, ::2] << 4 | codes[:, 1::2], 8)
        weights = copies(packed, hot)
        return lambda i: torch.ops.aten._weight_int4pack_mm(x, weights[i % len(weights)], w.group_size, scale_and_zero)
    if N % 16:
        return None
    weights = copies(torch.ops.aten._convert_weight_to_int4pack_for_cpu(w.unpack().int(), 1), hot)
    return lambda i: torch.ops.aten._weight_int4pack_mm_for_cpu(
        x, weights[i % len(weights)], w.group_size, scale_and_zero
    )


def bitsandbytes_nf4(x: Tensor, w: LutWeight, hot: bool) -> Run | None:
    """NF4: 16 levels of its own; in the layout for AVX-512 BF16 where the processor has that, as its Linear4bit."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        return None
    if w.bits != 4 or w.group_size not in (32, 64, 128, 256):
        return None
    packed, state = bnb.functional.quantize_4bit(w.dequantize(x.dtype), blocksize=w.group_size, quant_type="nf4")
    if (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and bnb.functional.has_avx512bf16()
        and w.shape[0] % 32 == 0
    ):
        packed, state = bnb.functional._convert_weight_packed_for_cpu(packed, state)
    weights = copies(packed, hot)
    return lambda i: bnb.matmul_4bit(x, weights[i % len(weights)], state)


@cache
def _gemlite_helper():
    try:
        from gemlite.helper import A16Wn
    except ImportError:
        return None
    return A16Wn


def gemlite(x: Tensor, w: LutWeight, hot: bool) -> Run | None:
    """GemLite's Triton kernels for uniform levels, on a GPU; it tunes itself at the first call."""
    if not x.is_cuda or w.bits not in (8, 4, 2, 1) or _gemlite_helper() is None:
        return None
    scales = w.scales().to(x.dtype)
    pack = _gemlite_helper()(device=str(x.device), dtype=x.dtype)
    layers = [
        pack.from_weights(codes, scales, torch.zeros_like(scales), w.bits, w.group_size)
        for codes in copies(w.unpack(), hot)
    ]
    return lambda i: layers[i % len(layers)](x)


PEERS: dict[str, Callable[[Tensor, LutWeight, bool], Run | None]] = {
    "torch int4": torch_int4,
    "bitsandbytes nf4": bitsandbytes_nf4,
    "gemlite": gemlite,
}
