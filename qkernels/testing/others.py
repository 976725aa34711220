"""The ops that are no quantizers against their references: what ``qkernels verify`` calls beside the cases."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

import qkernels as qk
from qkernels import backends
from qkernels.ops.blocks import int_range
from qkernels.ops.channel_error import reference
from qkernels.pack import PLANES, LutWeight

from .compare import assert_same_bits, assert_sum


class Calls(Protocol):
    """(backend, device, dtype) -> one yield a call that agrees.

    Raises:
        AssertionError: what differs, where and by how much.
    """

    def __call__(self, backend: str, device: str, dtype: torch.dtype) -> Iterator[None]: ...


@dataclass(frozen=True)
class Other:
    """An op without a Case. dtypes: of what makes its kernels differ: x, or the scales of a packed weight."""

    name: str
    calls: Calls
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)

    def backends(self) -> tuple[str, ...]:
        return backends.backends_of(self.name)

    def refusal(self, backend: str, x: Tensor) -> str | None:
        """Why ``backend`` cannot run it on x, or None."""
        return backends.refusal(self.name, backend, x, self.dtypes)


# N, K and how many scales: groups, rows, parts of tiles and stripes
WEIGHTS = ((1, 1, 1), (17, 96, 51), (33, 257, 33), (40, 704, 440), (64, 640, 320))


def packed_weight(
    *shape: int, bits: int = 4, P: int = 1, integers: bool = False, seed: int = 0, scale_dtype=torch.float32
) -> LutWeight:
    """A packed weight; with ``integers`` its values are small integers, so that every sum is exact."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, generator=g, dtype=torch.uint8)
    levels = torch.arange(2**bits) - 2.0 ** (bits - 1) if integers else torch.randn(2**bits, generator=g)
    scale = torch.ones(P) if integers else torch.rand(P, generator=g) + 0.1
    return LutWeight.pack(codes, levels, scale, bits=bits, scale_dtype=scale_dtype)


def assert_twice_as_good(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None) -> None:
    """The 2x rule: at most twice the error of F.linear in the same dtype, truth in float64."""
    truth = F.linear(x.double(), w.double(), None if bias is None else bias.double())
    plain = F.linear(x, w.to(x.dtype), None if bias is None else bias.to(x.dtype))
    own = (plain.double() - truth).abs().max()
    size = F.linear(x.double().abs(), w.double().abs()).max()
    off, allowed = (y.double() - truth).abs().max(), 2 * own + torch.finfo(torch.float32).eps * size
    assert off <= allowed, f"{list(x.shape)} times {list(w.shape)}: off by {off:.3g}, {allowed:.3g} allowed"


def _few(backend: str, device: str) -> bool:
    """Whether calls are slow: Triton's interpreter."""
    return (backend, device) == ("triton", "cpu")


def _lut_linear(backend: str, device: str, dtype: torch.dtype) -> Iterator[None]:
    g = torch.Generator().manual_seed(1)
    for bits in PLANES:
        for N, K, P in WEIGHTS[: 3 if _few(backend, device) else None]:
            for M in (0, 1, 17) if _few(backend, device) else (0, 1, 2, 7, 16, 33, 65, 600):
                w = packed_weight(N, K, bits=bits, P=P, integers=True).to(device)
                x, bias = torch.randint(-4, 5, (M, K), generator=g).float(), torch.randint(-4, 5, (N,), generator=g)
                want = F.linear(x.double(), w.dequantize().double().cpu(), bias.double()).to(dtype)
                got = qk.lut_linear(x.to(device, dtype), w, bias.float().to(device), backend=backend)
                what = f"lut_linear {backend} {bits} bits {[M, K]} times {[N, K]}, {P} scales, integers"
                assert_same_bits(got.cpu() + 0.0, want + 0.0, what)
                yield
                for levels in (None, w.levels) if M else ():  # any, and those of LSQ
                    other = packed_weight(N, K, bits=bits, P=P).to(device)
                    other = other if levels is None else dataclasses.replace(other, levels=levels)
                    x, bias = (torch.randn(s, generator=g).to(device, dtype) for s in ((M, K), (N,)))
                    y = qk.lut_linear(x, other, bias, backend=backend)
                    assert_twice_as_good(y, x, other.dequantize(), bias)
                    yield


def _lut_linear_int(backend: str, device: str, dtype: torch.dtype) -> Iterator[None]:
    g, span = torch.Generator().manual_seed(1), torch.iinfo(dtype)
    kinds = [(torch.arange(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)), bits) for bits in PLANES]
    kinds += [(qk.post_levels(bits), bits) for bits in (2, 3, 4)] + [(qk.post_levels(4, "release"), 8)]
    for levels, bits in kinds:
        for N, K, P in WEIGHTS:
            codes = torch.randint(0, len(levels), (N, K), generator=g, dtype=torch.uint8)
            w = LutWeight.pack(codes, levels, torch.rand(P, generator=g) + 0.1, bits=bits).to(device)
            for M in (0, 1, 7, 33):
                x = torch.randint(span.min, span.max + 1, (M, K), generator=g).to(device, dtype)
                step, bias = (torch.rand(s, generator=g).to(device) + 0.1 for s in (max(M, 1), N))
                got, want = (qk.lut_linear_int(x, step, w, bias, backend=b).cpu() for b in (backend, "reference"))
                what = f"lut_linear_int {backend} {bits} bits, {len(levels)} levels {[M, K]} times {[N, K]}"
                assert_same_bits(got, want, what)
                yield
                floats, grid = x.float() * 0.4, {"bits": 8, "signed": span.min < 0}
                got, want = (
                    qk.lut_linear_int(floats, step, w, bias, backend=b, **grid).cpu() for b in (backend, "reference")
                )
                assert_same_bits(got, want, f"{what}, quantized")
                yield
                grid["bounds"] = (0.9 * floats.min().reshape(1), 0.8 * floats.max().reshape(1)) if M else (step, step)
                grid["symmetric"] = span.min < 0
                got, want = (
                    qk.lut_linear_int(floats, step, w, bias, backend=b, **grid).cpu() for b in (backend, "reference")
                )
                assert_same_bits(got, want, f"{what}, quantized between bounds")
                yield


def _lut_dequantize(backend: str, device: str, dtype: torch.dtype) -> Iterator[None]:
    for bits in PLANES:
        for N, K, P in WEIGHTS:
            w = packed_weight(N, K, bits=bits, P=P, scale_dtype=dtype)
            what = f"lut_dequantize {backend} {bits} bits {[N, K]}, {P} scales {dtype}"
            for to in {torch.float32, dtype}:
                got, want = qk.lut_dequantize(w.to(device), to, backend=backend).cpu(), w.dequantize().to(to)
                assert_same_bits(got, want, f"{what}, to {to}")
            yield


def _channel_error(backend: str, device: str, dtype: torch.dtype) -> Iterator[None]:
    g, step = torch.Generator().manual_seed(1), torch.tensor([0.3], device=device)
    for bits, signed in ((2, False), (8, False), (1, False), (4, True)):
        for shape, dim in (
            ((0, 3), 1), ((1,), 0), ((17,), 0), ((5, 7), 0), ((300, 33), -1), ((1, 40, 1), 1), ((2, 3, 100, 90), 1),
            ((2, 3, 5, 7), 2), ((2, 2, 9000), 1),
        ):  # fmt: skip
            x = torch.randn(shape, generator=g).to(device, dtype)
            got = qk.channel_error(x, step, bits=bits, dim=dim, signed=signed, backend=backend)
            want = qk.channel_error(x, step, bits=bits, dim=dim, signed=signed, backend="reference")
            truth = reference.channel_error(x.double(), step, *int_range("", bits, signed), dim % x.dim())
            for sums, reference_sums, true in zip(got, want, truth, strict=True):
                assert_sum(sums, reference_sums, true, 2 * true.abs(), f"channel_error {backend} {list(shape)} {dim}")
            yield


OTHERS = [
    Other("lut_linear", _lut_linear),
    Other("lut_dequantize", _lut_dequantize),
    Other("lut_linear_int", _lut_linear_int, dtypes=(torch.int8, torch.uint8)),
    Other("channel_error", _channel_error),
]
