"""Packed weights: the byte layout, exact dequantization, and every refusal."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qkernels import backends, pack
from qkernels.pack import PLANES, LutWeight, pack_rows, plane_shape, t16_nbytes, t16_offset, unpack_rows

BITS = tuple(PLANES)
SIZES = (1, 2, 5, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 255, 256, 257, 300)
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def random_codes(*shape: int, bits: int, seed: int = 0, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2**bits, shape, generator=generator, dtype=torch.uint8).to(device)


def make(*shape: int, bits: int = 4, P: int = 1, seed: int = 0, device: str = "cpu", **options) -> LutWeight:
    generator = torch.Generator().manual_seed(seed + 1)
    levels = torch.randn(2**bits, generator=generator).to(device)
    scale = torch.rand(P, generator=generator).to(device) + 0.1
    return LutWeight.pack(
        random_codes(*shape, bits=bits, seed=seed, device=device), levels, scale, bits=bits, **options
    )


def oracle_plane(codes: list[list[int]], p: int) -> bytes:
    """The drawing in pack.py, walked from the outside in: stripes, tiles, lanes, half-rows, words, nibbles."""
    N, K, width = len(codes), len(codes[0]), 256 // p

    def code(n: int, k: int) -> int:
        return codes[n][k] if n < N and k < K else 0

    out = bytearray()
    for stripe in range(0, N, 16):
        for tile in range(0, K, width):
            for g in range(8):
                for t in range(4):
                    for row in (stripe + g, stripe + g + 8):
                        if p == 8:
                            out += bytes(code(row, tile + 8 * t + i) for i in range(8))
                            continue
                        half = width // 2  # a word covers half of the tile's columns
                        for first in (tile, tile + half):
                            word = 0
                            for i in range(8):
                                for s, sub_block in enumerate(range(first, first + half, 32)):
                                    word |= code(row, sub_block + 8 * t + i) << (4 * i + s * p)
                            out += word.to_bytes(4, "little")
    return bytes(out)


@settings(deadline=None, max_examples=150)
@given(bits=st.sampled_from(BITS), N=st.sampled_from(SIZES), K=st.sampled_from(SIZES), seed=st.integers(0, 99))
def test_unpack_inverts_pack(bits: int, N: int, K: int, seed: int):
    codes = random_codes(N, K, bits=bits, seed=seed)
    w = LutWeight.pack(codes, torch.arange(2.0**bits), torch.ones(1), bits=bits)
    assert w.unpack().dtype == torch.uint8
    assert torch.equal(w.unpack(), codes)


@pytest.mark.skipif(not backends.HAS_COMPILED, reason="the compiled kernels are not built")
@pytest.mark.parametrize("bits", BITS)
def test_the_compiled_packing_and_the_plain_one_give_the_same_bytes(bits: int, monkeypatch):
    for N, K in ((1, 1), (15, 33), (16, 256), (35, 129), (33, 515)):
        w = make(N, K, bits=bits)
        codes = w.unpack()
        with monkeypatch.context() as plain:
            plain.setattr(pack, "_compiled", lambda data: False)
            again = make(N, K, bits=bits)
            assert torch.equal(again.unpack(), codes)
        assert torch.equal(w.codes, again.codes)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("N", "K"), [(1, 1), (16, 256), (17, 257), (40, 300)])
def test_t16_bytes_match_the_drawing(bits: int, N: int, K: int, device: str):
    codes = random_codes(N, K, bits=bits, device=device)
    w = LutWeight.pack(codes, torch.arange(2.0**bits, device=device), torch.ones(1, device=device), bits=bits)
    planes = {3: [(codes & 3, 2), (codes >> 2, 1)]}.get(bits, [(codes, bits)])
    assert bytes(w.codes.tolist()) == b"".join(oracle_plane(plane.tolist(), p) for plane, p in planes)


@pytest.mark.parametrize(
    ("bits", "K", "k", "byte", "value"),
    [  # row 9: lane g = 1, second half-row; byte = 512 tile + 16 (4 g + t) + 8 half + 4 word + i / 2
        (4, 64, 41, 16 * 5 + 8 + 4 + 0, 0xF0),  # sub-block 1, t = 1, i = 1
        (4, 128, 64, 512 + 16 * 4 + 8, 0x0F),  # second tile, t = 0, i = 0
        (2, 128, 105, 16 * 5 + 8 + 4 + 0, 0xC0),  # sub-block 3 = B of word 1, i = 1
        (1, 256, 105, 16 * 5 + 8 + 0 + 0, 0x80),  # sub-block 3 = D of word 0, i = 1
        (8, 32, 9, 16 * 5 + 8 + 1, 0xFF),  # t = 1, i = 1
    ],
)
def test_one_code_lands_on_its_byte(bits: int, K: int, k: int, byte: int, value: int):
    codes = torch.zeros(16, K, dtype=torch.uint8)
    codes[9, k] = 2**bits - 1
    w = LutWeight.pack(codes, torch.arange(2.0**bits), torch.ones(1), bits=bits)
    assert {i: v for i, v in enumerate(w.codes.tolist()) if v} == {byte: value}


def test_three_bits_are_a_two_bit_plane_then_a_one_bit_plane():
    codes = torch.zeros(16, 256, dtype=torch.uint8)
    codes[9, 105] = 0b101
    w = LutWeight.pack(codes, torch.arange(8.0), torch.ones(1), bits=3)
    plane_2 = 512 * 2  # 2 tiles of 128 columns
    assert w.codes.numel() == plane_2 + 512
    assert {i: v for i, v in enumerate(w.codes.tolist()) if v} == {92: 0x40, plane_2 + 88: 0x80}


@pytest.mark.parametrize("bits", BITS)
def test_t16_offset_finds_every_code(bits: int):
    N, K = 35, 290
    codes = random_codes(N, K, bits=bits)
    data = LutWeight.pack(codes, torch.arange(2.0**bits), torch.ones(1), bits=bits).codes.tolist()
    for n in range(N):
        for k in range(K):
            found, base, shift = 0, 0, 0
            for p in PLANES[bits]:
                byte, bit = t16_offset(n, k, K=K, p=p)
                found |= (data[base + byte] >> bit & 2**p - 1) << shift
                base, shift = base + 512 * math.prod(plane_shape(N, K, p)), shift + p
            assert found == codes[n, k]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("N", "K"), [(1, 1), (17, 65), (16, 256)])
def test_padding_is_zero(bits: int, N: int, K: int):
    ones = torch.full((N, K), 2**bits - 1, dtype=torch.uint8)
    w = LutWeight.pack(ones, torch.arange(2.0**bits), torch.ones(1), bits=bits)
    assert sum(v.bit_count() for v in w.codes.tolist()) == N * K * bits
    assert w.scale.sum() == N


def test_scale_is_in_stripes_of_16_rows():
    N, K, g = 20, 96, 32
    scale = torch.arange(1.0, 1 + N * 3)
    w = LutWeight.pack(random_codes(N, K, bits=2), torch.arange(4.0), scale, bits=2)
    assert w.group_size == g
    assert w.scale.shape == (2, 3, 16)
    for n in range(N):
        for k in range(K):
            assert w.scale[n // 16, k // g, n % 16] == scale[n * 3 + k // g]
    assert torch.equal(w.scales(), scale.view(N, 3))


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from(BITS),
    shape=st.sampled_from(
        [(1, 32), (5, 64), (17, 96), (16, 32, 1, 1), (6, 32, 3, 3), (3, 7), (4, 3, 5, 5), (2, 33, 1)]
    ),
    blocks=st.sampled_from(["tensor", "rows", "groups"]),
    seed=st.integers(0, 99),
)
def test_dequantize_is_one_float32_product(bits: int, shape: tuple[int, ...], blocks: str, seed: int):
    N, K = shape[0], math.prod(shape[1:])
    P = {"tensor": 1, "rows": N, "groups": N * K // 32 if K % 32 == 0 else N}[blocks]
    generator = torch.Generator().manual_seed(seed)
    codes = random_codes(*shape, bits=bits, seed=seed)
    levels = torch.randn(2**bits, generator=generator)
    scale = torch.randn(P, generator=generator).exp()
    w = LutWeight.pack(codes, levels, scale, bits=bits)
    expected = (levels[codes.long()].view(P, -1) * scale[:, None]).view(shape)  # the block rule, spelled out
    assert torch.equal(w.dequantize(), expected)
    assert torch.equal(w.dequantize(torch.bfloat16), expected.bfloat16())
    assert w.dequantize(torch.float16).dtype == torch.float16


def test_group_size_repeats_a_coarser_scale():
    codes, levels = random_codes(6, 128, bits=4), torch.randn(16)
    rows = torch.rand(6) + 0.5
    w = LutWeight.pack(codes, levels, rows, bits=4, group_size=64)
    assert w.scale.shape == (1, 2, 16)
    assert torch.equal(w.dequantize(), LutWeight.pack(codes, levels, rows, bits=4).dequantize())
    one = LutWeight.pack(codes, levels, rows[:1], bits=4, group_size=64)
    assert torch.equal(one.scales(), rows[:1].expand(6, 2))


@pytest.mark.parametrize("group_size", [None, 64])
def test_scales_are_taken_as_they_are_returned(group_size):
    codes, levels, scale = random_codes(6, 128, bits=4), torch.randn(16), torch.rand(2, 6).t() + 0.5
    w = LutWeight.pack(codes, levels, scale, bits=4, group_size=group_size)
    assert torch.equal(w.scales(), scale)
    flat = LutWeight.pack(codes, levels, scale.flatten(), bits=4, group_size=group_size)
    assert torch.equal(w.scale, flat.scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_16_bit_scale_is_rounded_once_and_multiplied_in_float32(dtype: torch.dtype):
    codes, levels, scale = random_codes(8, 64, bits=4), torch.randn(16), torch.rand(8) + 0.5
    w = LutWeight.pack(codes, levels, scale, bits=4, scale_dtype=dtype)
    assert w.scale.dtype == dtype
    assert torch.equal(w.dequantize(), levels[codes.long()] * scale.to(dtype).float()[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dequantize_never_gives_minus_zero(dtype: torch.dtype):
    levels = torch.tensor([-0.0, -1.0, -1e-45, 1.0])
    codes = torch.arange(4, dtype=torch.uint8).repeat(3, 1)
    y = LutWeight.pack(codes, levels, torch.tensor([1.0, 0.0, 1e-12]), bits=2).dequantize(dtype)
    assert (y == 0).sum() >= 5
    assert not torch.signbit(y[y == 0]).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_every_integer_dtype_packs_the_same(dtype: torch.dtype):
    codes = random_codes(5, 37, bits=4)
    w = LutWeight.pack(codes.to(dtype), torch.arange(16.0), torch.ones(1), bits=4)
    assert torch.equal(w.codes, LutWeight.pack(codes, torch.arange(16.0), torch.ones(1), bits=4).codes)


@pytest.mark.parametrize("bits", BITS)
def test_strides_do_not_matter(bits: int):
    base = random_codes(64, 34, bits=bits)
    flat = random_codes(16 * 32 + 7, bits=bits)
    image = random_codes(4, 3, 5, 5, bits=bits)
    for codes in (base.t(), base[::2, 1:], flat[7:].view(16, 32), image.to(memory_format=torch.channels_last)):
        w = LutWeight.pack(codes, torch.arange(2.0**bits), torch.ones(1), bits=bits)
        assert torch.equal(w.unpack(), codes)


def test_pack_copies_its_arguments():
    codes, levels, scale = random_codes(16, 32, bits=8), torch.randn(256), torch.ones(16)
    w = LutWeight.pack(codes, levels, scale, bits=8)
    before = w.dequantize()
    codes.zero_(), levels.zero_(), scale.zero_()
    assert torch.equal(w.dequantize(), before)


def test_parameters_pack_without_their_graph():
    levels, scale = torch.nn.Parameter(torch.randn(16)), torch.nn.Parameter(torch.ones(1))
    w = LutWeight.pack(random_codes(4, 32, bits=4), levels, scale, bits=4)
    assert not w.levels.requires_grad and not w.scale.requires_grad


def test_sizes_count_everything_in_memory():
    w = make(64, 128, bits=4, P=64 * 4)
    assert w.nbytes == 64 * 128 // 2 + 16 * 4 + 64 * 4 * 4
    assert w.bits_per_weight == 8 * w.nbytes / (64 * 128)
    assert t16_nbytes(17, 65, 4) == 2 * 2 * 512
    assert repr(w) == "LutWeight([64, 128], bits=4, group_size=32, levels=16, 5.06 bits per weight, cpu)"


@pytest.mark.parametrize("device", DEVICES)
def test_to_moves_all_tensors(device: str):
    w = make(5, 37, bits=3)
    moved = w.to(device)
    assert {t.device.type for t in (moved.codes, moved.levels, moved.scale)} == {device}
    assert moved.device.type == device
    assert torch.equal(moved.dequantize().cpu(), w.dequantize())


@settings(deadline=None, max_examples=100)
@given(bits=st.integers(1, 8), N=st.integers(1, 5), K=st.sampled_from(SIZES), seed=st.integers(0, 99))
def test_rows_are_a_little_endian_bit_stream(bits: int, N: int, K: int, seed: int):
    codes = random_codes(N, K, bits=bits, seed=seed)
    packed = pack_rows(codes, bits)
    assert packed.shape == (N, math.ceil(K * bits / 8))
    for row, want in zip(packed.tolist(), codes.tolist(), strict=True):
        assert int.from_bytes(bytes(row), "little") == sum(c << (bits * k) for k, c in enumerate(want))
    assert torch.equal(unpack_rows(packed, K, bits), codes)


GOOD = {
    "codes": torch.zeros(4, 64, dtype=torch.uint8),
    "levels": torch.tensor([0.0, 1.0, 2.0]),
    "scale": torch.ones(4),
    "bits": 2,
}


def test_the_good_case_of_the_refusals_is_accepted():
    call = dict(GOOD)
    assert LutWeight.pack(call.pop("codes"), call.pop("levels"), call.pop("scale"), **call).shape == (4, 64)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"codes": torch.zeros(4, 64)}, TypeError, "codes must be uint8 or int8 .* got torch.float32"),
        ({"codes": torch.zeros(4, 64, dtype=torch.bool)}, TypeError, "codes must be .* got torch.bool"),
        ({"codes": GOOD["codes"].to("meta")}, ValueError, "codes must hold data, got a meta tensor"),
        ({"levels": GOOD["levels"].to("meta")}, ValueError, "levels must hold data, got a meta tensor"),
        ({"codes": torch.zeros(64, dtype=torch.uint8)}, ValueError, r"at least 2 dimensions .* got \[64\]"),
        ({"codes": torch.zeros(0, 64, dtype=torch.uint8)}, ValueError, r"no empty one, got \[0, 64\]"),
        ({"codes": GOOD["codes"] + 3}, ValueError, r"codes must lie in \[0, 3\), got 3 to 3"),
        ({"codes": GOOD["codes"].int() - 1}, ValueError, r"codes must lie in \[0, 3\), got -1 to -1"),
        ({"codes": GOOD["codes"].int() + 256}, ValueError, r"codes must lie in \[0, 3\), got 256 to 256"),
        ({"levels": torch.arange(3)}, TypeError, "levels must be a float tensor, got torch.int64"),
        ({"levels": torch.zeros(5)}, ValueError, r"levels must have shape \[1 to 4\] for 2 bits, got \[5\]"),
        ({"levels": torch.zeros(0)}, ValueError, r"levels must have shape \[1 to 4\] for 2 bits, got \[0\]"),
        ({"levels": torch.zeros(3, 1)}, ValueError, r"levels must have shape .* got \[3, 1\]"),
        ({"levels": torch.tensor([0.0, math.nan])}, ValueError, "levels must be finite in torch.float32, got nan"),
        ({"levels": torch.tensor([0.0, 1e300], dtype=torch.float64)}, ValueError, "levels must be finite"),
        (
            {"levels": torch.tensor([1e-300], dtype=torch.float64)},
            ValueError,
            "levels must not underflow to 0 in torch.float32, got 1e-300",
        ),
        ({"scale": torch.ones(4, dtype=torch.int32)}, TypeError, "scale must be a float tensor, got torch.int32"),
        ({"scale": torch.tensor([1.0, 1.0, -math.inf, 1.0])}, ValueError, "scale must be finite .* got -inf"),
        ({"scale": torch.tensor(1.0)}, ValueError, r"scale must have shape \[1\], \[N=4\], .* got \[\]"),
        ({"scale": torch.ones(1, 4)}, ValueError, r"scale must have shape .* or \[N=4, G=1\] .* got \[1, 4\]"),
        ({"scale": torch.ones(4, 1, 1)}, ValueError, r"scale must have shape .* got \[4, 1, 1\]"),
        ({"scale": torch.ones(0)}, ValueError, r"scale must have shape .* got \[0\]"),
        ({"scale": torch.ones(2)}, ValueError, r"scale must have shape .* got \[2\]"),
        ({"scale": torch.ones(12)}, ValueError, r"scale must have shape .* got \[12\]"),
        ({"scale": torch.ones(16)}, ValueError, "group_size must divide K=64 and be a multiple of 32, or K, got 16"),
        ({"scale": torch.ones(8), "group_size": 64}, ValueError, r"\[N\*G=4\] .* got \[8\]"),
        ({"group_size": 0}, ValueError, "group_size must divide K=64 .* got 0"),
        ({"group_size": 16}, ValueError, "group_size must divide K=64 .* got 16"),
        ({"group_size": 128}, ValueError, "group_size must divide K=64 .* got 128"),
        ({"codes": [[0, 1]]}, TypeError, "LutWeight.pack: codes must be a Tensor, got list"),
        ({"levels": [0.0, 1.0]}, TypeError, "LutWeight.pack: levels must be a Tensor, got list"),
        ({"scale": 1.0}, TypeError, "LutWeight.pack: scale must be a Tensor, got float"),
        ({"group_size": 32.0}, TypeError, "group_size must be an int, got 32.0"),
        ({"group_size": True}, TypeError, "group_size must be an int, got True"),
        ({"bits": 4.0}, TypeError, "bits must be an int, got 4.0"),
        ({"bits": "4"}, TypeError, "bits must be an int, got '4'"),
        ({"bits": True}, TypeError, "bits must be an int, got True"),
        ({"bits": 5}, ValueError, r"bits must be one of \[1, 2, 3, 4, 8\], got 5"),
        ({"scale_dtype": torch.float64}, TypeError, "scale_dtype must be float32 or .* got torch.float64"),
        (
            {"scale": torch.full((4,), 1e6), "scale_dtype": torch.float16},
            ValueError,
            "finite in torch.float16, got inf",
        ),
        (
            {"scale": torch.full((4,), 2**-30), "scale_dtype": torch.float16},
            ValueError,
            "not underflow to 0 .* got 9.3.*e-10",
        ),
    ],
)
def test_pack_refuses(change: dict, error: type[Exception], match: str):
    call = GOOD | change
    with pytest.raises(error, match=match):
        LutWeight.pack(call.pop("codes"), call.pop("levels"), call.pop("scale"), **call)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_pack_refuses_mixed_devices():
    with pytest.raises(ValueError, match="levels must be on cpu like codes, got cuda"):
        LutWeight.pack(GOOD["codes"], GOOD["levels"].cuda(), GOOD["scale"], bits=2)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"codes": [0]}, TypeError, "LutWeight: codes must be a Tensor, got list"),
        ({"bits": 4.0}, TypeError, "bits must be an int, got 4.0"),
        ({"codes": torch.zeros(512, dtype=torch.int8)}, TypeError, "codes must be uint8, got torch.int8"),
        ({"levels": torch.zeros(4).double()}, TypeError, "levels must be float32, got torch.float64"),
        ({"scale": torch.ones(1, 2, 16).double()}, TypeError, "scale must be float32 or .* got torch.float64"),
        ({"codes": torch.zeros(511, dtype=torch.uint8)}, ValueError, r"codes must have shape \[512\] .* got \[511\]"),
        ({"codes": torch.zeros(513, dtype=torch.uint8)[1:]}, ValueError, "multiple of 16 bytes .* offset 1"),
        ({"codes": torch.zeros(1024, dtype=torch.uint8)[::2]}, ValueError, r"codes must be contiguous .* \(2,\)"),
        ({"levels": torch.zeros(17)}, ValueError, r"levels must have shape \[1 to 16\] for 4 bits, got \[17\]"),
        ({"scale": torch.ones(16, 2)}, ValueError, r"scale must have shape \[1, 2, 16\], got \[16, 2\]"),
        ({"levels": torch.zeros(4, device="meta")}, ValueError, "levels must be on cpu like codes, got meta"),
        ({"group_size": 48}, ValueError, "group_size must divide K=64 .* got 48"),
        ({"bits": 7}, ValueError, "bits must be one of .* got 7"),
        ({"shape": (16,)}, ValueError, r"at least 2 dimensions .* got \[16\]"),
    ],
)
def test_the_constructor_refuses(change: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        dataclasses.replace(make(16, 64, bits=4, P=32), **change)


def test_check_reads_every_value():
    w = make(17, 65, bits=4)
    w.check()
    with pytest.raises(ValueError, match=r"codes must lie in \[0, 15\), got 15"):
        dataclasses.replace(w, levels=w.levels[:15].clone()).check()
    with pytest.raises(ValueError, match="levels must be finite .* got nan"):
        dataclasses.replace(w, levels=torch.full((16,), math.nan)).check()
    with pytest.raises(ValueError, match="scale must be finite .* got inf"):
        dataclasses.replace(w, scale=torch.full_like(w.scale, math.inf)).check()


def test_rows_refuse_what_would_not_come_back():
    with pytest.raises(ValueError, match=r"codes must be below 2\*\*bits=8, got 8"):
        pack_rows(torch.tensor([[1, 8]], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match=r"codes must be uint8 \[N, K\], got torch.int64 \[1, 2\]"):
        pack_rows(torch.tensor([[1, 8]]), 4)
    with pytest.raises(ValueError, match=r"rows must have ceil\(K \* bits / 8\)=2 bytes, got 1"):
        unpack_rows(torch.zeros(1, 1, dtype=torch.uint8), 5, 3)
