"""Packed weights: small integer codes, one table of levels, and scales. A weight is ``levels[code] * scale``.

The T16 layout
==============
A weight is a matrix [N, K]: N = shape[0], K = the product of the other dimensions. Codes of 1, 2, 3, 4 or 8 bits are
cut into planes of p = 1, 2, 4 or 8 bits (``PLANES``; only 3 bits need two planes: bits 0 and 1, then bit 2). The planes
follow one another in ``codes``. N is padded to a multiple of 16, K to a multiple of the plane's tile width 256 / p;
the codes of the padding are 0::

    plane  = stripe 0 | stripe 1 | ...          stripe = 16 rows               ceil(N / 16) stripes
    stripe = tile 0 | tile 1 | ...              tile   = 16 rows x 256 / p     ceil(K / (256 / p)) tiles of 512 bytes
    tile   = lane 0 | lane 1 | ... | lane 31    lane   = 16 bytes: 8 of row g, then 8 of row g + 8; lane = 4 g + t

The columns of a tile come in 8 / p sub-blocks of 32. In each, lane 4 g + t owns the 8 columns from 8 t on::

                      sub-block 0                          sub-block 1
              columns 0-7      8-15     16-23    24-31     32-39    40-47    ...
                      t = 0    t = 1    t = 2    t = 3     t = 0    t = 1    ...
    row 0             lane 0   lane 1   lane 2   lane 3    lane 0   lane 1   ...
    row 1             lane 4   lane 5   lane 6   lane 7    lane 4   lane 5   ...
    ...
    row 7             lane 28  lane 29  lane 30  lane 31   lane 28  lane 29  ...
    row 8             lane 0   lane 1   lane 2   lane 3    lane 0   lane 1   ...       (their second 8 bytes)
    ...
    row 15            lane 28  lane 29  lane 30  lane 31   lane 28  lane 29  ...

The 8 bytes that a lane holds of a row are two 32-bit little-endian words: the first and the second half of the tile's
sub-blocks, 4 / p each. Call the sub-blocks of one word A, B, C, D. Nibble i of the word belongs to column 8 t + i::

    bit      31  30  29  28    ...     7   6   5   4     3   2   1   0
    p = 4    |     A 7     |   ...    |     A 1     |   |     A 0     |
    p = 2    | B 7 |  A 7  |   ...    | B 1 |  A 1  |   | B 0 |  A 0  |
    p = 1     D7  C7  B7  A7   ...     D1  C1  B1  A1    D0  C0  B0  A0

A tile of an 8-bit plane is one sub-block, and the 8 bytes are its columns 8 t to 8 t + 7. ``t16_offset`` is all this as
a formula. A lane's codes are what it feeds to ``mma.m16n8k16`` as operand A, if B takes its rows in the same order.

Scales are [ceil(N / 16), G, 16] with G = K / group_size: weight (n, k) has scale[n // 16, k // group_size, n % 16].
The scales of padded rows are 0.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.compiler import is_compiling

from . import backends

PLANES: dict[int, tuple[int, ...]] = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}  # bits -> plane widths, low first
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_SCALES = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LutWeight:
    """A weight as codes in the T16 layout (drawn at the top of this file), levels and scales.

    The constructor takes packed bytes and checks their sizes, not their values: a code that has no level gives any
    number, or an error. ``check`` reads them all; ``pack`` makes them from plain codes.

    Args:
        codes: uint8 [T16 bytes], the planes one after another.
        levels: float32 [n_levels], n_levels <= 2**bits.
        scale: float32, bfloat16 or float16 [ceil(N/16), G, 16], G = K / group_size; ``pack`` takes [N, G].
        bits: 1, 2, 3, 4 or 8.
        group_size: columns that share a scale: a multiple of 32 that divides K, or K itself (one scale per row).
        shape: of the weight before packing: [N, K], or [N, ...] with K = the product of the rest.

    Raises:
        TypeError: a wrong dtype.
        ValueError: sizes that do not fit each other, or tensors on different devices.
    """

    codes: Tensor
    levels: Tensor
    scale: Tensor
    bits: int
    group_size: int
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        N, K = matrix_shape(self.shape)
        _check_bits(self.bits)
        check_group_size(self.group_size, K)
        for name, tensor, dtypes in (
            ("codes", self.codes, (torch.uint8,)),
            ("levels", self.levels, (torch.float32,)),
            ("scale", self.scale, _SCALES),
        ):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"LutWeight: {name} must be a Tensor, got {type(tensor).__name__}")
            if tensor.dtype not in dtypes:
                raise TypeError(f"LutWeight: {name} must be {_names(dtypes)}, got {tensor.dtype}")
            if tensor.device != self.codes.device:
                raise ValueError(f"LutWeight: {name} must be on {self.codes.device} like codes, got {tensor.device}")
            start = 0 if is_compiling() else tensor.storage_offset() * tensor.itemsize  # which a compiler cannot trace
            if not tensor.is_contiguous() or start % 16:
                raise ValueError(
                    f"LutWeight: {name} must be contiguous and start at a multiple of 16 bytes in its storage, "
                    f"got strides {tensor.stride()} and offset {tensor.storage_offset()}"
                )
        expected = (t16_nbytes(N, K, self.bits),)
        if self.codes.shape != expected:
            raise ValueError(
                f"LutWeight: codes must have shape {list(expected)} for {self.bits} bits and shape "
                f"{list(self.shape)}, got {list(self.codes.shape)}"
            )
        _check_levels(self.levels, self.bits)
        expected = (math.ceil(N / 16), K // self.group_size, 16)
        if self.scale.shape != expected:
            raise ValueError(f"LutWeight: scale must have shape {list(expected)}, got {list(self.scale.shape)}")

    @classmethod
    def pack(
        cls,
        codes: Tensor,
        levels: Tensor,
        scale: Tensor,
        *,
        bits: int,
        group_size: int | None = None,
        scale_dtype: torch.dtype = torch.float32,
    ) -> "LutWeight":
        """Pack ``levels[codes] * scale``; the result shares no memory with the arguments.

        Args:
            codes: integers in [0, n_levels), shape [N, ...].
            levels: float [n_levels], 1 <= n_levels <= 2**bits; finite; stored as float32.
            scale: float [P], finite. It splits the codes, in row-major order, into P equal contiguous blocks:
                P = 1 (the tensor), N (rows) or N * G (groups, G = K / group_size); or the last as [N, G].
            bits: 1, 2, 3, 4 or 8.
            group_size: columns that share a scale: a multiple of 32 that divides K, or K. A scale with P = 1 or
                P = N is repeated. None takes it from P.
            scale_dtype: float32 is exact for a float32 scale; bfloat16 and float16 round it.

        Raises:
            TypeError: codes that are not integers, levels or scale that are not float, another ``scale_dtype``, bits or
                group_size not an int.
            ValueError: everything else above that does not hold, meta tensors, tensors on different devices.
        """
        for name, tensor in (("codes", codes), ("levels", levels), ("scale", scale)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"LutWeight.pack: {name} must be a Tensor, got {type(tensor).__name__}")
        if codes.dtype not in _INTEGERS:
            raise TypeError(f"LutWeight.pack: codes must be {_names(_INTEGERS)}, got {codes.dtype}")
        if scale_dtype not in _SCALES:
            raise TypeError(f"LutWeight.pack: scale_dtype must be {_names(_SCALES)}, got {scale_dtype}")
        for name, tensor in (("codes", codes), ("levels", levels), ("scale", scale)):
            if tensor.is_meta:
                raise ValueError(f"LutWeight.pack: {name} must hold data, got a meta tensor")
            if tensor.device != codes.device:
                raise ValueError(f"LutWeight.pack: {name} must be on {codes.device} like codes, got {tensor.device}")
            if name != "codes" and not tensor.is_floating_point():
                raise TypeError(f"LutWeight.pack: {name} must be a float tensor, got {tensor.dtype}")
        N, K = matrix_shape(codes.shape)
        _check_bits(bits)
        _check_levels(levels, bits)
        levels, scale = _cast("levels", levels, torch.float32), _cast("scale", scale, scale_dtype)
        P = scale.numel()
        if group_size is None:
            group_size = N * K // P if P and P % N == 0 and N * K % P == 0 else K
        check_group_size(group_size, K)
        G = K // group_size
        if scale.shape not in ((1,), (N,), (N * G,), (N, G)):
            raise ValueError(
                f"LutWeight.pack: scale must have shape [1], [N={N}], [N*G={N * G}] or [N={N}, G={G}] with "
                f"G = K / group_size, got {list(scale.shape)}"
            )
        low, high = (int(v) for v in codes.aminmax())
        if low < 0 or high >= levels.numel():
            raise ValueError(f"LutWeight.pack: codes must lie in [0, {levels.numel()}), got {low} to {high}")
        stripes = scale.new_zeros(math.ceil(N / 16) * 16, G)
        stripes[:N] = scale.reshape(-1, G if P == N * G else 1).expand(N, G)
        return cls(
            codes=_pack_t16(codes.reshape(N, K).to(torch.uint8), bits),
            levels=levels,
            scale=stripes.view(-1, 16, G).transpose(1, 2).contiguous(),  # [N/16, G, 16]
            bits=bits,
            group_size=group_size,
            shape=tuple(codes.shape),
        )

    def unpack(self) -> Tensor:
        """The codes: uint8, of ``shape``."""
        N, K = matrix_shape(self.shape)
        return unpack_t16(self.codes, N, K, self.bits).reshape(self.shape)

    def scales(self) -> Tensor:
        """The scales in natural order: [N, G], their own dtype."""
        return self.scale.transpose(1, 2).flatten(0, 1)[: self.shape[0]].contiguous()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``levels[code] * scale`` of ``shape``: one product in float32, then the cast to ``dtype``; never -0."""
        N, K = matrix_shape(self.shape)
        G = K // self.group_size
        y = self.levels.index_select(0, self.unpack().flatten().int())
        y = y.view(N, G, -1).mul_(self.scales().float()[:, :, None])  # [N, G, K/G]
        return y.view(self.shape).to(dtype).add_(0.0)

    def check(self) -> None:
        """Read every value: ValueError unless levels and scales are finite and each code has a level."""
        _check_finite("levels", self.levels)
        _check_finite("scale", self.scale)
        n_levels = self.levels.numel()
        if n_levels < 2**self.bits and (high := int(self.unpack().max())) >= n_levels:
            raise ValueError(f"LutWeight: codes must lie in [0, {n_levels}), got {high}")

    def to(self, device: torch.device | str) -> "LutWeight":
        """The same weight on ``device``."""
        codes, levels, scale = (t.to(device) for t in (self.codes, self.levels, self.scale))
        return dataclasses.replace(self, codes=codes, levels=levels, scale=scale)

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        """Bytes in memory: codes, levels and scales, with their padding."""
        return self.codes.nbytes + self.levels.nbytes + self.scale.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits, per weight of ``shape``."""
        return 8 * self.nbytes / math.prod(self.shape)

    def __repr__(self) -> str:
        return (
            f"LutWeight({list(self.shape)}, bits={self.bits}, group_size={self.group_size}, "
            f"levels={self.levels.numel()}, {self.bits_per_weight:.2f} bits per weight, {self.device})"
        )


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, K) of a weight: its first dimension and the product of the others. ValueError below 2 dimensions or empty."""
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"LutWeight: shape must have at least 2 dimensions and no empty one, got {list(shape)}")
    return shape[0], math.prod(shape[1:])


def check_group_size(group_size: int, K: int) -> None:
    """TypeError or ValueError unless groups of ``group_size`` columns fill K and T16's sub-blocks fill the groups."""
    _check_int("group_size", group_size)
    if group_size < 1 or K % group_size or (group_size % 32 and group_size != K):
        raise ValueError(f"LutWeight: group_size must divide K={K} and be a multiple of 32, or K, got {group_size}")


def plane_shape(N: int, K: int, p: int) -> tuple[int, int]:
    """(stripes, tiles per stripe) of a p-bit plane; it takes 512 bytes a tile."""
    return math.ceil(N / 16), math.ceil(K / (256 // p))


def t16_nbytes(N: int, K: int, bits: int) -> int:
    """Bytes of [N, K] codes in the T16 layout, all planes."""
    return sum(512 * math.prod(plane_shape(N, K, p)) for p in PLANES[bits])


def t16_offset(n: int, k: int, *, K: int, p: int) -> tuple[int, int]:
    """Where the p bits of code (n, k) lie in a plane: (byte from the plane's start, lowest bit in that byte).

    The definition for those who write kernels; ``pack`` and ``unpack`` move whole planes instead.
    """
    tile_width = 256 // p
    tile = n // 16 * math.ceil(K / tile_width) + k // tile_width
    lane = n % 8 * 4 + k % 32 // 8
    half, sub, i = n % 16 // 8, k % tile_width // 32, k % 8
    start = tile * 512 + lane * 16 + half * 8
    if p == 8:
        return start + i, 0
    per_word = 4 // p  # sub-blocks in a 32-bit word
    return start + sub // per_word * 4 + i // 2, i % 2 * 4 + sub % per_word * p


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """Codes as a little-endian bit stream: code k of a row takes its bits ``bits * k`` and up. Rows start on a byte.

    Args:
        codes: uint8 [N, K], below 2**bits.
        bits: 1 to 8.

    Returns:
        uint8 [N, ceil(K * bits / 8)], the smallest form: for files.

    Raises:
        ValueError: codes that are not as above.
    """
    if codes.dtype != torch.uint8 or codes.dim() != 2 or codes.numel() == 0:
        raise ValueError(f"pack_rows: codes must be uint8 [N, K], got {codes.dtype} {list(codes.shape)}")
    if (high := int(codes.max())) >= 2**bits:
        raise ValueError(f"pack_rows: codes must be below 2**bits={2**bits}, got {high}")
    N, K = codes.shape
    octets = F.pad(codes, (0, -K % 8)).view(N, -1, 8)  # 8 codes fill `bits` bytes
    packed = octets.new_zeros(N, octets.shape[1], bits)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        packed[:, :, byte] |= octets[:, :, i] << shift
        if shift + bits > 8:
            packed[:, :, byte + 1] |= octets[:, :, i] >> (8 - shift)
    return packed.flatten(1)[:, : math.ceil(K * bits / 8)].contiguous()


def unpack_rows(packed: Tensor, K: int, bits: int) -> Tensor:
    """Invert ``pack_rows``: uint8 [N, ceil(K * bits / 8)] -> uint8 [N, K]."""
    N, width = packed.shape
    if width != math.ceil(K * bits / 8):
        raise ValueError(f"unpack_rows: rows must have ceil(K * bits / 8)={math.ceil(K * bits / 8)} bytes, got {width}")
    octets = F.pad(packed, (0, -width % bits)).view(N, -1, bits)
    codes = octets.new_empty(N, octets.shape[1], 8)
    for i in range(8):
        byte, shift = divmod(i * bits, 8)
        code = octets[:, :, byte] >> shift
        if shift + bits > 8:
            code |= octets[:, :, byte + 1] << (8 - shift)
        codes[:, :, i] = code & (2**bits - 1)
    return codes.flatten(1)[:, :K].contiguous()


def _pack_t16(codes: Tensor, bits: int) -> Tensor:
    """uint8 [N, K] below 2**bits -> uint8 [t16_nbytes]."""
    if _compiled(codes):
        return torch.ops.qkernels_cpu.lut_pack(codes.contiguous(), bits)
    planes, shift = [], 0
    for p in PLANES[bits]:
        plane = codes if p == bits else codes >> shift & (2**p - 1)
        planes.append(_pack_plane(plane, p))
        shift += p
    return planes[0] if len(planes) == 1 else torch.cat(planes)


def unpack_t16(packed: Tensor, N: int, K: int, bits: int) -> Tensor:
    """uint8 [t16_nbytes] -> uint8 [N, K]."""
    if _compiled(packed):
        return torch.ops.qkernels_cpu.lut_unpack(packed, bits, N, K)
    codes, shift = None, 0
    sizes = [512 * math.prod(plane_shape(N, K, p)) for p in PLANES[bits]]
    for p, plane in zip(PLANES[bits], packed.split(sizes), strict=True):
        part = _unpack_plane(plane, N, K, p)
        codes = part if codes is None else codes | part << shift
        shift += p
    return codes


def _compiled(data: Tensor) -> bool:
    """Whether the compiled kernels can move ``data``: real bytes on a CPU, not what a compiler traces with."""
    return backends.HAS_COMPILED and type(data) is Tensor and data.device.type == "cpu" and not is_compiling()


def _pack_plane(codes: Tensor, p: int) -> Tensor:
    """uint8 [N, K] below 2**p -> uint8 [512 * stripes * tiles]."""
    N, K = codes.shape
    S, T = plane_shape(N, K, p)
    codes = F.pad(codes, (0, T * (256 // p) - K, 0, S * 16 - N))
    if p == 8:
        data = codes.view(S, 2, 8, T, 4, 2, 4).transpose(4, 5)
    else:
        blocks = codes.view(S * 16, T, 2, 4 // p, 32)  # [row, tile, word, sub-block of the word, column]
        data = blocks[..., 0, :]
        for s in range(1, 4 // p):
            data = data | blocks[..., s, :] << s * p
        data = data[..., 0::2] | data[..., 1::2] << 4
    # 4 bytes move as one int32, whichever end comes first: [stripe, half, g, tile, word, t] -> [.., tile, lane, ..]
    words = data.view(S, 2, 8, T, 2, 4, 4).view(torch.int32)
    return words.squeeze(-1).permute(0, 3, 2, 5, 1, 4).contiguous().view(torch.uint8).flatten()


def _unpack_plane(packed: Tensor, N: int, K: int, p: int) -> Tensor:
    """Invert ``_pack_plane``: uint8 [512 * stripes * tiles] -> uint8 [N, K]."""
    S, T = plane_shape(N, K, p)
    words = packed.view(torch.int32).view(S, T, 8, 4, 2, 2)  # [stripe, tile, g, t, half, word]
    data = words.permute(0, 4, 2, 1, 5, 3).contiguous().view(torch.uint8)  # [stripe, half, g, tile, word, 4 t + byte]
    if p == 8:
        codes = data.view(S, 2, 8, T, 2, 4, 4).transpose(4, 5)
    else:
        nibbles = torch.stack((data & 15, data >> 4), -1).view(S * 16, T, 2, 32)
        codes = torch.stack([nibbles >> s * p & (2**p - 1) for s in range(4 // p)], -2)
    return codes.reshape(S * 16, -1)[:N, :K]


def _cast(name: str, values: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of ``values`` in ``dtype``; ValueError for a value that is not finite, or that ``dtype`` turns into 0."""
    cast = values.detach().to(dtype, copy=True)
    _check_finite(name, cast)
    lost = (cast == 0) & (values != 0)
    if bool(lost.any()):
        raise ValueError(f"LutWeight: {name} must not underflow to 0 in {dtype}, got {values[lost][0].item()}")
    return cast


def _check_finite(name: str, values: Tensor) -> None:
    if not bool((finite := values.isfinite()).all()):
        raise ValueError(f"LutWeight: {name} must be finite in {values.dtype}, got {values[~finite][0].item()}")


def _check_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"LutWeight: {name} must be an int, got {value!r}")


def _check_bits(bits: int) -> None:
    _check_int("bits", bits)
    if bits not in PLANES:
        raise ValueError(f"LutWeight: bits must be one of {list(PLANES)}, got {bits}")


def _check_levels(levels: Tensor, bits: int) -> None:
    if levels.dim() != 1 or not 1 <= levels.numel() <= 2**bits:
        raise ValueError(
            f"LutWeight: levels must have shape [1 to {2**bits}] for {bits} bits, got {list(levels.shape)}"
        )


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return " or ".join(str(d).removeprefix("torch.") for d in dtypes)
