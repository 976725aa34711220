"""Packed matmuls against F.linear on the float weight and against other low-bit kernels, in one interleaved run."""

import dataclasses
import functools
import itertools
import statistics
import timeit
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import qkernels as qk
from qkernels import backends
from qkernels.pack import LutWeight

from . import peers
from .peers import PEERS, copies
from .timing import interleave

SHAPES = ((4096, 4096), (14336, 4096))  # N, K
GPU_SHAPES, GPU_ROWS = (*SHAPES, (28672, 8192)), (1, 8, 16, 64, 128, 256, 512)
ROWS = (1, 4, 16, 64, 128)
BITS = (4, 3, 2, 1, 8)
QUICK_ROWS, QUICK_BITS = (1, 16), (4, 2)
CACHES = ("hot", "rotated")
DTYPES = ("float32", "bfloat16", "float16", "int8")
SETTING = ("N", "K", "M", "bits", "group", "dtype", "levels", "device", "cache")
_FLOATS = "lsq, lut_linear"


@functools.lru_cache(maxsize=1)
def make_weight(N: int, K: int, bits: int, group: int, levels_kind: str, device: str) -> LutWeight:
    """levels_kind: "integers", LSQ's (CPQ's and DAQ's are integers too); or any values of the dtype named.

    POST's are values of bfloat16, DQ learns those of float32.
    """
    g = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (N, K), generator=g, dtype=torch.uint8)
    levels, scale = torch.randn(2**bits, generator=g), torch.rand(N * K // group, generator=g) + 0.1
    if levels_kind == "integers":
        levels = torch.arange(2.0**bits) - 2.0 ** (bits - 1)
    else:
        levels = levels.to(getattr(torch, levels_kind)).float()
    return LutWeight.pack(codes, levels, scale, bits=bits, group_size=group).to(device)


def make_post(N: int, K: int, bits: int, group: int) -> LutWeight:
    """On powers of sqrt(2)."""
    g, levels = torch.Generator().manual_seed(0), qk.post_levels(bits)
    codes, scale = torch.randint(0, len(levels), (N, K), generator=g), torch.rand(N * K // group, generator=g) + 0.1
    return LutWeight.pack(codes, levels, scale, bits=bits, group_size=group)


@functools.lru_cache(maxsize=3)
def square(dtype: torch.dtype, device: str) -> Tensor:
    """Ones, whose product by their own transpose shows the rate of a large matmul.

    Of the side from which that is at its best, or the largest one for which it takes no more than a quarter of a
    second: processors that multiply float32 alone take a hundred times longer for other dtypes.
    """
    side = {4: 768, 2: 4096 if device == "cuda" else 2048}[dtype.itemsize]
    if device == "cpu":
        a = torch.ones(256, 256, dtype=dtype)
        seconds = min(timeit.repeat(lambda: F.linear(a, a), number=1, repeat=3))
        while side > 256 and seconds * (side / 256) ** 3 > 0.25:
            side //= 2
    return torch.ones(side, side, device=device, dtype=dtype)


def measure(
    N: int,
    K: int,
    M: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
    levels: str,
    device: str,
    cache: str,
    seconds: float,
) -> dict:
    """One row. The roof is a sum by the same threads, over as many bytes as the caches do not hold; hot, over as many
    as the packed weight has, from the cache that holds them.

    On a GPU a time is that of one call in a CUDA graph, which goes over all copies of the weight.

    limit_us: reading w and x at that bandwidth, or the products at the rate of a large matmul, whichever takes longer.
    That matmul is in the dtype of x, in bfloat16 or on a CPU in float32, whichever is fastest: matrix units multiply
    parts of wider types. (Without AVX-512 integers, as one row may be multiplied in, are faster still.)
    dtype int8: activations are integers and the weight POST's, of 1 and 8 bits LSQ's, and ``lut_linear_int`` multiplies
    them. Its peer is ``lut_linear`` with the same values in float32, as is the dense layer, and its limit that of the
    bandwidth.
    """
    hot, integers, name = cache == "hot", dtype == torch.int8, str(dtype)[6:]
    if integers and bits not in (2, 3, 4):
        levels = "integers"
    if post := integers and levels != "integers":
        levels = "POST's"
    w = make_post(N, K, bits, group) if post else make_weight(N, K, bits, group, levels, device)
    dtype = torch.float32 if integers else dtype
    ours = [dataclasses.replace(w, codes=codes) for codes in copies(w.codes, hot)]
    dense = copies(w.dequantize(dtype), hot)
    x = torch.randn(M, K, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    much = torch.ones((w.nbytes if hot else peers.BETWEEN) // 4, device=device)
    more = () if device == "cuda" else (torch.float32,)
    kinds = () if integers else dict.fromkeys((dtype, torch.bfloat16, *more))
    squares = {f"products in {d}": square(d, device) for d in kinds}

    def floats(i: int) -> Tensor:
        return qk.lut_linear(x, ours[i % len(ours)])

    candidates = {
        "ours": floats,
        "dense": lambda i: F.linear(x, dense[i % len(dense)]),
        "roof": lambda i: much.sum(),
    } | {name: lambda i, a=a: F.linear(a, a) for name, a in squares.items()}
    if integers:
        step = (x.abs().max() / 127).reshape(1)
        candidates |= {
            "ours": lambda i: qk.lut_linear_int(x, step, ours[i % len(ours)], bits=8),
            _FLOATS: lambda i: qk.lut_linear(qk.lsq(x, step, bits=8), ours[i % len(ours)]),
        }
    else:
        candidates |= {peer: run for peer, make in PEERS.items() if (run := make(x, w, hot)) is not None}
    times = interleave(candidates, device, seconds, hot=hot, laps=len(ours) if device == "cuda" else 0)
    mine = times["ours"]
    nbytes = w.nbytes + x.nbytes + M * N * x.itemsize
    gbps = nbytes / mine.median / 1e3
    by_bytes = nbytes / much.nbytes * times["roof"].median
    by_products = min((M * N * K / len(a) ** 3 * times[name].median for name, a in squares.items()), default=0.0)
    row = {
        "bits": bits, "group": group, "M": M, "N": N, "K": K, "dtype": name,
        "levels": levels, "device": device, "cache": cache,
        "backend": "cpu int8" if integers else backends.resolve("lut_linear", x, None),
        "median_us": mine.median, "p10_us": mine.quantile(0.1), "p90_us": mine.quantile(0.9),
        "dense_us": times["dense"].median, "x_dense": mine.ratio_to(times["dense"]),
        "gbps": gbps, "pct_roof": 100 * by_bytes / mine.median, "limit_us": max(by_bytes, by_products),
        "peer": None, "peer_us": None, "x_peer": None,
    }  # fmt: skip
    if found := [peer for peer in times if peer in (*PEERS, _FLOATS)]:
        best = min(found, key=lambda peer: times[peer].median)
        row["peers_us"] = {peer: round(times[peer].median, 3) for peer in found}
        row["x_peers"] = {peer: round(mine.ratio_to(times[peer]), 3) for peer in found}
        row |= {"peer": best, "peer_us": row["peers_us"][best], "x_peer": row["x_peers"][best]}
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}


def run(
    device: str,
    quick: bool,
    bits: list[int] | None = None,
    rows: list[int] | None = None,
    levels: str = "bfloat16",
    dtypes: list[str] | None = None,
    caches: list[str] | None = None,
    shapes: list[tuple[int, int]] | None = None,
    repeat: int = 1,
) -> Iterator[dict]:
    """Rows of the matmul benchmark, ``repeat`` times over; rows: of x; levels: of the weight (see make_weight)."""
    if device == "cuda":
        settings = GPU_SHAPES, GPU_ROWS, ("rotated",), ("bfloat16",)
    elif quick:
        settings = SHAPES[:1], QUICK_ROWS, ("hot",), ("float32", "int8")
    else:
        settings = SHAPES, ROWS, CACHES, ("float32", "bfloat16", "int8")
    seconds = 0.3 if device == "cuda" else 1.0 if quick else 2.0
    asked = shapes, rows, caches, dtypes
    shapes, rows, caches, dtypes = (a or s for a, s in zip(asked, settings, strict=True))
    bits = bits or (QUICK_BITS if quick else BITS)
    for _ in range(repeat):
        for (N, K), name, b, M, cache in itertools.product(shapes, dtypes, bits, rows, caches):
            yield measure(N, K, M, b, 128, getattr(torch, name), levels, device, cache, seconds)


def medians(rows: list[dict]) -> list[dict]:
    """Medians over the runs of each setting in ``rows``: a row for each peer, the fastest first."""
    settings = {}
    for row in rows:
        settings.setdefault(tuple(row[key] for key in SETTING), []).append(row)
    out = []
    for setting, runs in settings.items():
        row = dict(zip(SETTING, setting, strict=True))
        for key in ("median_us", "dense_us", "x_dense", "pct_roof"):
            row[key] = statistics.median(run[key] for run in runs)
        found = []
        for peer in dict.fromkeys(peer for run in runs for peer in run.get("peers_us", ())):
            beside = [run for run in runs if peer in run.get("peers_us", ())]
            us, times = (statistics.median(run[key][peer] for run in beside) for key in ("peers_us", "x_peers"))
            found.append({"peer": peer, "peer_us": us, "x_peer": times})
        out += [row | peer for peer in sorted(found, key=lambda f: f["peer_us"]) or [{}]]
    return out
