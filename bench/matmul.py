"""Packed matmuls against F.linear on the float weight and against other low-bit kernels, in one interleaved run."""

import dataclasses
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import qkernels as qk
from qkernels import backends
from qkernels.pack import LutWeight

from .timing import interleave

SHAPES = ((4096, 4096), (14336, 4096))  # N, K
ROWS = (1, 4, 16, 64)
BITS = (4, 3, 2, 1, 8)
BETWEEN = 256 << 20  # bytes of weights to walk over before one is used again, where the caches shall not hold it


def make_weight(N: int, K: int, bits: int, group: int, device: str) -> LutWeight:
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (N, K), generator=g, dtype=torch.uint8)
    levels, scale = torch.randn(2**bits, generator=g), torch.rand(N * K // group, generator=g) + 0.1
    return LutWeight.pack(codes, levels, scale, bits=bits, group_size=group).to(device)


def make_post(N: int, K: int, group: int) -> LutWeight:
    """4 bits on powers of sqrt(2)."""
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 15, (N, K), generator=g, dtype=torch.uint8)
    return LutWeight.pack(
        codes, qk.post_levels(4), torch.rand(N * K // group, generator=g) + 0.1, bits=4, group_size=group
    )


def copies(tensor: Tensor, hot: bool) -> list[Tensor]:
    return [tensor] + [tensor.clone() for _ in range(0 if hot else BETWEEN // tensor.nbytes)]


def torch_int4(x: Tensor, w: LutWeight, hot: bool) -> Callable[[int], Tensor] | None:
    """torch's own 4-bit kernel for CPUs: uniform levels, so other values than ours, from as many bytes."""
    if x.device.type != "cpu" or w.bits != 4 or w.shape[0] % 16 or w.group_size not in (32, 64, 128, 256):
        return None
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(w.unpack().int(), 1)
    scale_and_zero = torch.stack((w.scales().T, torch.zeros_like(w.scales().T)), -1).to(x.dtype).contiguous()
    weights = copies(packed, hot)
    return lambda i: torch.ops.aten._weight_int4pack_mm_for_cpu(
        x, weights[i % len(weights)], w.group_size, scale_and_zero
    )


def bitsandbytes_nf4(x: Tensor, w: LutWeight, hot: bool) -> Callable[[int], Tensor] | None:
    """NF4: 16 levels of its own, groups of up to 128 columns."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        return None
    if w.bits != 4 or w.group_size not in (64, 128, 256):
        return None
    packed, state = bnb.functional.quantize_4bit(w.dequantize(x.dtype), blocksize=w.group_size, quant_type="nf4")
    weights = copies(packed, hot)
    return lambda i: bnb.matmul_4bit(x, weights[i % len(weights)].t(), state)


PEERS = {"torch int4": torch_int4, "bitsandbytes nf4": bitsandbytes_nf4}


def measure(
    N: int, K: int, M: int, bits: int, group: int, dtype: torch.dtype, device: str, cache: str, seconds: float
) -> dict:
    """One row. The roof is a sum over as many bytes as the caches do not hold, by the same threads.

    dtype int8: activations are integers and the weight POST's, so that ``lut_linear_int`` multiplies them. Its peer is
    ``lut_linear`` with the same values in float32, and so is the dense layer.
    """
    hot, integers = cache == "hot", dtype == torch.int8
    w = make_post(N, K, group) if integers else make_weight(N, K, bits, group, device)
    given, dtype = dtype, torch.float32 if integers else dtype
    ours = [dataclasses.replace(w, codes=codes) for codes in copies(w.codes, hot)]
    dense = copies(w.dequantize(dtype), hot)
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    codes, step = (x * 32).clamp(-128, 127).to(torch.int8), torch.tensor([1 / 32], device=device)
    much = torch.ones(BETWEEN // 4, device=device)
    candidates = {
        "ours": lambda i: (
            qk.lut_linear_int(codes, step, ours[i % len(ours)]) if integers else qk.lut_linear(x, ours[i % len(ours)])
        ),
        "dense": lambda i: F.linear(x, dense[i % len(dense)]),
        "roof": lambda i: much.sum(),
    }
    if integers:
        candidates["lut_linear"] = lambda i: qk.lut_linear(x, ours[i % len(ours)])
    else:
        candidates |= {name: run for name, make in PEERS.items() if (run := make(x, w, hot)) is not None}
    times = interleave(candidates, device, seconds, hot=hot)
    mine = times["ours"]
    gbps = (w.nbytes + (codes if integers else x).nbytes + M * N * x.itemsize) / mine.median / 1e3
    row = {
        "bits": bits, "group": group, "M": M, "N": N, "K": K, "dtype": str(given)[6:], "device": device,
        "backend": "cpu post-int8" if integers else backends.resolve("lut_linear", x, None), "cache": cache,
        "median_us": mine.median, "p10_us": mine.quantile(0.1), "p90_us": mine.quantile(0.9),
        "dense_us": times["dense"].median, "x_dense": mine.ratio_to(times["dense"]),
        "gbps": gbps, "pct_roof": 100 * gbps / (much.nbytes / times["roof"].median / 1e3),
    }  # fmt: skip
    if peers := [name for name in times if name in (*PEERS, "lut_linear")]:
        best = min(peers, key=lambda name: times[name].median)
        row |= {"peer": best, "peer_us": times[best].median, "x_peer": mine.ratio_to(times[best])}
        row["peers_us"] = {name: round(times[name].median, 3) for name in peers}
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def run(device: str, quick: bool) -> Iterator[dict]:
    """Rows of the matmul benchmark."""
    dtypes = (torch.bfloat16,) if device == "cuda" else (torch.float32, torch.bfloat16)
    settings = [
        (*shape, M, bits, dtype, cache)
        for shape in SHAPES for dtype in dtypes for bits in BITS for M in ROWS for cache in ("hot", "rotated")
    ]  # fmt: skip
    integers = [(*shape, M, 4, torch.int8, cache) for shape in SHAPES for M in ROWS for cache in ("hot", "rotated")]
    if quick:
        settings = [(*SHAPES[0], M, bits, dtypes[0], "hot") for bits in (4, 2) for M in (1, 16)]
        integers = [(*SHAPES[0], M, 4, torch.int8, "hot") for M in (1, 4, 16)]
    settings += integers if device == "cpu" else []
    for N, K, M, bits, dtype, cache in settings:
        yield measure(N, K, M, bits, 128, dtype, device, cache, 1.0 if quick else 2.0)
