"""Integer activations times a packed weight on powers of sqrt(2) or on integers, summed exactly: the definition."""

import math
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from qkernels.ops.grids import IntegerGrid, positive

SEGMENT = 4096  # columns whose sum int32 holds, and which is then rounded to float32
SQRT2 = 181 / 128  # the bfloat16 that qkernels.post has
LARGEST = (1 << 31) // (SEGMENT * 255)  # of a level, in units
MOST = 16  # of even and odd, so that the sum of sixteen products with bytes fits 16 bits
MOST_EVEN = 255  # of levels that are evenly spaced, for which the codes themselves are multiplied
MOST_LEVELS = 32  # others: of a table
MOST_OCTAVES = 4  # of a power among those of its kind: 2**4 is MOST


class Levels(NamedTuple):
    """level[c] = unit * (a * even[c] + b * odd[c]); even and odd are whole numbers, one of them 0."""

    even: Tensor  # float32 [n_levels]: of +-2**-j, or of integers
    odd: Tensor  # float32 [n_levels]: of +-sqrt(2) * 2**-j
    a: int
    b: int
    unit: float  # a power of two

    def whole(self) -> Tensor:
        """The levels in units: int64."""
        return (self.a * self.even + self.b * self.odd).long()


def split(levels: Tensor) -> Levels:
    """ValueError unless the levels are 0 and powers of sqrt(2) of few sizes, or integers of one unit."""
    return _split(tuple(levels.tolist()))


@lru_cache(maxsize=256)
def _split(levels: tuple[float, ...]) -> Levels:
    if (integers := _integers(levels)) is not None:
        even, exponent = integers
        return Levels(torch.tensor(even), torch.zeros(len(even)), 1, 0, 2.0**exponent)
    if len(levels) > MOST_LEVELS:
        raise ValueError(f"levels that are not evenly spaced must be at most {MOST_LEVELS}, got {len(levels)}")
    parts = {False: {}, True: {}}  # whether a power is odd -> code -> (sign, exponent)
    for code, level in enumerate(levels):
        mantissa, exponent = math.frexp(abs(level))
        if level and mantissa not in (0.5, SQRT2 / 2):
            raise ValueError(
                f"levels must be 0 or +-2**(j/2), sqrt(2) as 1.4140625, or integers of one unit, up to {MOST}, or "
                f"evenly spaced and up to {MOST_EVEN}, got {level:g}"
            )
        if level:
            parts[mantissa != 0.5][code] = (1 if level > 0 else -1, exponent - 1)
    least = {odd: min((e for _, e in part.values()), default=None) for odd, part in parts.items()}
    lowest = min((e for e in least.values() if e is not None), default=0)
    tables, factors = [], []
    for odd, part in parts.items():
        start = lowest if least[odd] is None else least[odd]
        if (span := max((e for _, e in part.values()), default=start) - start) > MOST_OCTAVES:
            raise ValueError(
                f"levels must be at most 2**{MOST_OCTAVES} times the smallest of their kind, got 2**{span} times"
            )
        table = torch.zeros(len(levels))
        for code, (sign, e) in part.items():
            table[code] = sign << e - start
        tables.append(table)
        factors.append((181 if odd else 128) << start - lowest)
    largest = max((abs(a * f) for t, f in zip(tables, factors, strict=True) for a in t.tolist()), default=0)
    if largest > LARGEST:
        raise ValueError(
            f"levels must be at most {LARGEST / 128:g} times their smallest power of 2, got {largest / 128:g}"
        )
    return Levels(*tables, *factors, 2.0 ** (lowest - 7))


def _integers(levels: tuple[float, ...]) -> tuple[list[float], int] | None:
    """(v, e), every level being v * 2**e with whole v of a size that is for them; None if there are no such."""
    least = 0
    if sizes := [level.as_integer_ratio() for level in levels if level and math.isfinite(level)]:
        least = min((p & -p).bit_length() - q.bit_length() for p, q in sizes)  # the lowest bit of any level
    values = [math.ldexp(level, -least) for level in levels]
    spaced = len({b - a for a, b in pairwise(values)}) <= 1
    most = MOST_EVEN if spaced else MOST if len(values) <= MOST_LEVELS else 0
    return (values, least) if all(abs(v) <= most for v in values) else None


def integers(x: Tensor, grid: IntegerGrid) -> tuple[Tensor, Tensor]:
    """x [M, K] as integers, those of the grid if it is float, and the step of each row, [M].

    A step that is not positive is NaN, as is that of a row of floats with a NaN, or whose bounds have no distance.
    (With bounds a step of 0 is that of a positive scale, and stays.)
    """
    step, qmin, qmax, lower, upper, by = grid
    each = x.shape[0] // step.shape[0]
    steps = (positive(step) if lower is None else step).repeat_interleave(each)
    if not x.is_floating_point():
        return x, steps
    if lower is None:
        v = x.float() / steps[:, None]
        rounded = v.clamp(qmin, qmax).round()
    else:
        low, high = (bound.repeat_interleave(each)[:, None] for bound in (lower, upper))
        n, width = (qmax - qmin) // by, positive(high - low)
        q = ((x.float() - low) * (torch.full_like(width, n) / width)).clamp(0, n)
        rounded = by * (q.floor() + (q - q.floor() > 0.5)) + qmin  # daq's codes, half down
    steps = torch.where(rounded.isnan().any(1), torch.nan, steps)
    return rounded.nan_to_num(0.0).to(torch.int8 if qmin < 0 else torch.uint8), steps


def lut_linear_int(
    x: Tensor, step: Tensor, codes: Tensor, levels: Levels, scale: Tensor, group_size: int, bias: Tensor | None
) -> Tensor:
    """x [M, K] int8 | uint8, step [M], codes [N, K], scale [N, G], bias [N] or None -> float32 [M, N].

    A segment is up to 4096 columns of a group. Its sum is exact, and rounded once; so is its product with the scale,
    and the sum over segments, one after another. Then the product with unit * step, then the bias.
    """
    weight = levels.whole().double().to(codes.device)[codes.long()]
    total = torch.zeros(x.shape[0], codes.shape[0], device=x.device)
    for group in range(scale.shape[1]):
        end = (group + 1) * group_size
        for start in range(group * group_size, end, SEGMENT):
            part = slice(start, min(start + SEGMENT, end))
            sums = x[:, part].double() @ weight[:, part].T  # exact: integers below 2**31
            total += sums.float() * scale[:, group].float()
    y = total * (step * levels.unit)[:, None]
    return y if bias is None else y + bias.float()
