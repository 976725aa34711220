"""How ``lut_linear`` runs on a CUDA device: which way, and how the decode kernel is spread over the device.

>>> pick(1, 4096, 4096, 4, torch.bfloat16, sms=132)
Plan(kernel='decode', stripes=1, splits=1, warps=8)
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

MOST_ROWS = 64  # of x that are decoded for; beyond, the weight is made once. (Not yet timed on a GPU.)
MOST_PREFILL_ROWS = 512  # of x, up to where the matrix units' kernel takes over, where it may run
MOST_COLUMNS = 1 << 20  # kDecodeMostColumns of csrc/lut_linear/lut_linear_cuda_kernels.h
_BLOCKS_PER_SM = 2  # what registers and shared memory allow
_WARPS = 8  # of a thread block
_MOST_BLOCKS = 65535  # along one axis of a grid
_TILE = 128  # rows and columns of a product that a multiprocessor of the library's matmul takes
_CACHED = 12 << 20  # weights of 16 bits that stay in the cache of a large GPU until they are read
_MOST = 64 << 20  # that are 16-bit floats at a time: 128 MiB
# What is not decoding, in units of a warp's batch. (Estimates, not yet timed.)
_FILL, _ROUND, _REDUCE = 0.25, 0.1, 1.0


@dataclass(frozen=True)
class Plan:
    """kernel: "decode" (few rows: codes become levels in registers), "prefill" (hundreds: so do they, for Hopper's
    wgmma) or "dequantize" (a part of the weight as floats at a time, then the library's matmul). splits: thread blocks
    that split K. For "decode": 16-row stripes a thread block, and warps of it that split K."""

    kernel: str
    stripes: int = 0
    splits: int = 0
    warps: int = 0


def pick(
    M: int,
    N: int,
    K: int,
    bits: int,
    dtype: torch.dtype,
    sms: int,
    *,
    group_size: int | None = None,
    wgmma: bool = False,
) -> Plan:
    """The plan for x [M, K] times a weight [N, K] on ``sms`` multiprocessors; wgmma: whether that kernel may be chosen.

    How K is split does not depend on M among few rows: one of x gives the same bits in every batch that is decoded for.
    """
    if dtype not in (torch.float16, torch.bfloat16) or K >= MOST_COLUMNS:
        return Plan("dequantize")
    if M <= MOST_ROWS:
        return Plan("decode", *_spread(N, K, bits, sms))
    group_size = group_size or K
    if wgmma and M <= MOST_PREFILL_ROWS and (group_size == K or group_size % 64 == 0) and N <= 128 * _MOST_BLOCKS:
        blocks, batches = math.ceil(M / 128) * math.ceil(N / 128), math.ceil(K / (128 if bits == 8 else 256))
        return Plan("prefill", splits=max(1, min(sms // blocks, batches // 2)))
    return Plan("dequantize")


def fills(M: int, N: int, sms: int) -> bool:
    """Whether the library's product [M, N] keeps ``sms`` multiprocessors busy without splitting sums."""
    return math.ceil(M / _TILE) * math.ceil(N / _TILE) >= sms


def chunk_rows(M: int, K: int, sms: int) -> int:
    """The rows of a weight of K columns that are 16-bit floats at a time, for M > 0 rows of x: those that stay in the
    cache, or more if they would not fill the device."""
    busy = math.ceil(sms / math.ceil(M / _TILE)) * _TILE
    return max(cached_rows(K), min(busy, _MOST // K // _TILE * _TILE))


def cached_rows(K: int) -> int:
    return max(_CACHED // K // 16, 1) * 16


@lru_cache(maxsize=1024)
def _spread(N: int, K: int, bits: int, sms: int) -> tuple[int, int, int]:
    """(stripes, splits, warps) of the least time: waves of thread blocks x what one of them does."""
    rows, batches = math.ceil(N / 16), math.ceil(K / (128 if bits == 8 else 256))
    slots = _BLOCKS_PER_SM * sms
    best = None
    for warps in (8, 4, 2, 1):
        side = _WARPS // warps  # stripes at a time
        least = math.ceil(rows / _MOST_BLOCKS / side) * side
        for splits in range(1, min(batches, 16) + 1):
            all_at_once = math.ceil(rows / max(slots // splits, 1) / side) * side
            for stripes in {least, max(least, all_at_once)}:
                blocks = math.ceil(rows / stripes)
                rounds = math.ceil(min(stripes, rows) / side)
                one = _FILL + rounds * (math.ceil(math.ceil(batches / splits) / warps) + _ROUND)
                time = math.ceil(blocks * splits / slots) * one + (_REDUCE if splits > 1 else 0)
                if best is None or (time, splits, -warps, stripes) < best:
                    best = (time, splits, -warps, stripes)
    _, splits, minus_warps, stripes = best
    return stripes, splits, -minus_warps
