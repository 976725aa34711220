"""Files of packed weights: what was written comes back, and every damaged file is refused with one sentence."""

import dataclasses
import json
import math
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qkernels import files
from qkernels.pack import PLANES, LutWeight


def make(*shape: int, bits: int = 4, P: int = 1, seed: int = 0, **options) -> LutWeight:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, shape, generator=generator)
    levels = torch.randn(2**bits, generator=generator)
    return LutWeight.pack(codes, levels, torch.rand(P, generator=generator) + 0.1, bits=bits, **options)


def assert_same(got: LutWeight, want: LutWeight) -> None:
    for name in ("codes", "levels", "scale"):
        a, b = getattr(got, name), getattr(want, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert (got.bits, got.group_size, got.shape) == (want.bits, want.group_size, want.shape)


WEIGHTS = {"tiled": make(16, 64, bits=4, P=32), "small": make(5, 37, bits=3, P=5)}
TENSORS = {"norm.weight": torch.arange(5.0)}
CONFIG = {"plan": [["*.mlp.*", 4]], "note": "ü"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    files.write(tmp_path, WEIGHTS, TENSORS, CONFIG)
    return tmp_path


def split(path: Path) -> tuple[dict, bytes]:
    """(header, data) of path/model.safetensors."""
    blob = (path / files.FILE).read_bytes()
    length = struct.unpack("<Q", blob[:8])[0]
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def join(path: Path, header: dict, data: bytes) -> None:
    text = json.dumps(header).encode()
    (path / files.FILE).write_bytes(struct.pack("<Q", len(text)) + text + data)


def listing_of(header: dict) -> dict:
    return json.loads(header["__metadata__"]["config"])


def set_listing(header: dict, listing: dict) -> None:
    header["__metadata__"]["config"] = json.dumps(listing)


@pytest.mark.parametrize("bits", tuple(PLANES))
@pytest.mark.parametrize(
    ("shape", "P"), [((16, 256), 1), ((32, 512), 32 * 4), ((5, 37), 5), ((48, 32, 4, 2), 48), ((6, 32, 3, 3), 6 * 9)]
)
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_read_inverts_write(tmp_path: Path, bits: int, shape: tuple[int, ...], P: int, scale_dtype: torch.dtype):
    w = make(*shape, bits=bits, P=P, scale_dtype=scale_dtype)
    files.write(tmp_path, {"w": w}, {}, {})
    weights, tensors, config = files.read(tmp_path)
    assert weights.keys() == {"w"} and tensors == {} and config == {}
    assert_same(weights["w"], w)


def test_tensors_and_config_come_back(tmp_path: Path):
    table = torch.randn(6, 4)
    tensors = {
        "bf16": torch.randn(3).bfloat16(),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "strided": table.t(),
        "tied.a": table,
        "tied.b": table,
        "slice": table[1:3],
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    files.write(tmp_path / "new" / "directory", WEIGHTS, tensors, CONFIG)
    weights, got, config = files.read(tmp_path / "new" / "directory")
    assert config == CONFIG
    assert weights.keys() == WEIGHTS.keys()
    assert got.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


def test_every_dtype_the_reader_knows_comes_back(tmp_path: Path):
    names = "bool uint8 int8 uint16 int16 uint32 int32 uint64 int64 float16 bfloat16 float32 float64"
    dtypes = [getattr(torch, name) for name in f"{names} float8_e4m3fn float8_e5m2".split()]
    files.write(tmp_path, {}, {str(d): torch.zeros(3, dtype=d) for d in dtypes}, {})
    assert {t.dtype for t in files.read(tmp_path)[1].values()} == set(dtypes)
    entries = [entry for name, entry in split(tmp_path)[0].items() if name != "__metadata__"]
    assert {entry["dtype"] for entry in entries} == set(files._DTYPES)
    assert all(entry["data_offsets"][0] % files._DTYPES[entry["dtype"]].itemsize == 0 for entry in entries)


def test_a_layer_without_padding_costs_its_bytes_in_memory(tmp_path: Path):
    w = make(64, 128, bits=4)
    files.write(tmp_path, {"w": w}, {}, {})
    header, data = split(tmp_path)
    assert listing_of(header)["weights"]["w"]["layout"] == "t16"
    assert len(data) == 64 * 128 // 2 + 16 * 4 + 64 * 4  # codes, levels, one scale a row
    assert (tmp_path / files.FILE).stat().st_size < len(data) + 600


def test_a_small_layer_is_not_padded_in_the_file(tmp_path: Path):
    w = make(5, 37, bits=3)
    files.write(tmp_path, {"w": w}, {}, {})
    header, data = split(tmp_path)
    assert listing_of(header)["weights"]["w"]["layout"] == "rows"
    assert len(data) == 5 * math.ceil(37 * 3 / 8) + 8 * 4 + 5 * 4
    assert w.nbytes == 1024 + 8 * 4 + 16 * 4  # 2 planes of one tile


@pytest.mark.parametrize(
    ("bits", "shape", "layout"),
    [(4, (16, 64), "t16"), (4, (15, 64), "rows"), (4, (16, 32), "rows"), (3, (16, 256), "t16"), (3, (16, 128), "rows")],
)
def test_the_layout_is_t16_only_without_padding(tmp_path: Path, bits: int, shape: tuple[int, int], layout: str):
    files.write(tmp_path, {"w": make(*shape, bits=bits)}, {}, {})
    assert listing_of(split(tmp_path)[0])["weights"]["w"]["layout"] == layout


def test_loaded_weights_are_aligned_and_outlive_the_file(saved: Path):
    weights, tensors, _ = files.read(saved)
    blob = (saved / files.FILE).read_bytes()
    with (saved / files.FILE).open("r+b") as f:  # in place: a mapped tensor would change
        f.write(b"\xff" * len(blob))
    assert all(t.data_ptr() % 64 == 0 for w in weights.values() for t in (w.codes, w.levels, w.scale))
    for name, w in weights.items():
        assert_same(w, WEIGHTS[name])
    assert torch.equal(tensors["norm.weight"], TENSORS["norm.weight"])


def test_any_safetensors_reader_opens_the_file(saved: Path):
    tensors = safetensors.torch.load_file(saved / files.FILE)
    assert torch.equal(tensors["tiled.codes"], WEIGHTS["tiled"].codes)


def test_the_same_model_makes_the_same_bytes(saved: Path, tmp_path: Path):
    files.write(tmp_path / "again", WEIGHTS, TENSORS, CONFIG)
    assert (tmp_path / "again" / files.FILE).read_bytes() == (saved / files.FILE).read_bytes()


def test_files_need_no_numpy(saved: Path):
    script = f"""
import sys
sys.modules["numpy"] = None  # an import of it fails
from qkernels import files
files.write({str(saved / "copy")!r}, *files.read({str(saved)!r}))
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
    assert (saved / "copy" / files.FILE).read_bytes() == (saved / files.FILE).read_bytes()


def test_write_replaces_in_one_step(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = (saved / files.FILE).read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(files.os, "replace", fail)
        files.write(saved, {}, {}, {})
    assert (saved / files.FILE).read_bytes() == before
    assert os.listdir(saved) == [files.FILE]
    files.write(saved, {}, {}, {"new": 1})
    assert files.read(saved) == ({}, {}, {"new": 1})
    assert os.listdir(saved) == [files.FILE]


def test_the_file_has_the_mode_of_any_new_file(saved: Path):
    (saved / "other").touch()
    assert stat.S_IMODE((saved / files.FILE).stat().st_mode) == stat.S_IMODE((saved / "other").stat().st_mode)


class Subclass(torch.Tensor):
    """Stands for a DTensor and its like: their memory is not where ``data_ptr`` says."""


@pytest.mark.parametrize(
    ("weights", "tensors", "config", "error", "match"),
    [
        (WEIGHTS, {"small.codes": torch.ones(1)}, {}, ValueError, "names must differ, got small.codes twice"),
        ({}, {}, {"x": math.nan}, ValueError, "not JSON compliant"),
        ({}, {}, {"x": torch.ones(1)}, TypeError, "not JSON serializable"),
        (
            {},
            {"x": torch.ones(2).to_sparse()},
            {},
            ValueError,
            "'x' must be a plain dense .* got Tensor, torch.sparse_coo",
        ),
        ({}, {"x": torch.ones(2, device="meta")}, {}, ValueError, "must be a plain dense .* on meta"),
        ({}, {"x": torch.ones(2).as_subclass(Subclass)}, {}, ValueError, "must be a plain dense .* got Subclass"),
        ({}, {"x": torch.ones(2, dtype=torch.complex64)}, {}, ValueError, "'x' must have dtype .* got torch.complex64"),
        ({}, {"x": torch.ones([1] * 17)}, {}, ValueError, "tensor 'x': shape must be at most 16 sizes"),
    ],
)
def test_write_refuses(tmp_path: Path, weights: dict, tensors: dict, config: dict, error: type[Exception], match: str):
    with pytest.raises(error, match=match):
        files.write(tmp_path, weights, tensors, config)
    assert os.listdir(tmp_path) == []


def refused(path: Path, match: str) -> None:
    with pytest.raises(ValueError, match=match) as info:
        files.read(path)
    assert str(info.value).startswith(str(path / files.FILE))
    assert len(str(info.value)) < 1000


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=files.FILE):
        files.read(tmp_path)


def test_a_truncated_file_is_refused_wherever_it_ends(saved: Path):
    blob = (saved / files.FILE).read_bytes()
    data = len(split(saved)[1])
    cuts = {*range(0, len(blob) - data, 7), *range(len(blob) - data, len(blob), 31), len(blob) - 1}
    for cut in sorted(cuts):
        (saved / files.FILE).write_bytes(blob[:cut])
        refused(saved, "must start with the 8 bytes" if cut < 8 else "truncated")


def test_a_longer_file_is_refused(saved: Path):
    with (saved / files.FILE).open("ab") as f:
        f.write(b"\0")
    refused(saved, "tensors must fill the data, .* truncated or too long")


@settings(deadline=None, max_examples=300)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_header_is_refused_or_harmless(tmp_path_factory, position: float, bit: int):
    path = tmp_path_factory.mktemp("flip")
    files.write(path, WEIGHTS, TENSORS, CONFIG)
    blob = bytearray((path / files.FILE).read_bytes())
    header = len(blob) - len(split(path)[1])
    blob[int(position * header)] ^= 1 << bit
    (path / files.FILE).write_bytes(blob)
    try:
        weights, _, _ = files.read(path)
    except ValueError as error:
        assert str(error).startswith(str(path / files.FILE))
        return
    for w in weights.values():  # a name or a number that still fits: a sound weight all the same
        w.check()


@settings(deadline=None, max_examples=200)
@given(blob=st.binary(max_size=64), framed=st.booleans())
def test_noise_is_refused(tmp_path_factory, blob: bytes, framed: bool):
    path = tmp_path_factory.mktemp("noise")
    (path / files.FILE).write_bytes(struct.pack("<Q", len(blob)) + blob if framed else blob)
    refused(path, "must")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"[1]", r"header must be a json object, got \[1\]"),
        (b"{", "header must be json"),
        (b"\xff\xff", "header must be json"),
        ("{}".encode("utf-16"), "header must be json"),
        (b"[" * 200_000, "header must be json"),
        (b'{"a": 1, "a": 2}', "names must differ, got 'a' twice"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"__metadata__": 3}', "metadata must be strings by name, got 3"),
        (b'{"__metadata__": {"format": 1}}', "metadata must be strings by name"),
        (b"{}", "metadata must hold format='qkernels', got None: not a file of qkernels"),
    ],
)
def test_a_header_that_is_none_is_refused(tmp_path: Path, text: bytes, match: str):
    (tmp_path / files.FILE).write_bytes(struct.pack("<Q", len(text)) + text)
    refused(tmp_path, match)


def test_a_header_longer_than_the_limit_is_refused_before_it_is_read(tmp_path: Path):
    with (tmp_path / files.FILE).open("wb") as f:
        f.write(struct.pack("<Q", 2**27))
        f.truncate(2**28)  # sparse: takes no disk
    refused(tmp_path, "header must have at most 100000000 bytes, got 134217728")
    (tmp_path / files.FILE).write_bytes(b"\xff" * 8 + b"{}")
    refused(tmp_path, "header must have at most 2 bytes, got 18446744073709551615")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path: Path, metadata: dict | None):
    safetensors.torch.save_file({"weight": torch.ones(3)}, tmp_path / files.FILE, metadata)
    refused(tmp_path, "metadata must hold format='qkernels', got .*: not a file of qkernels")


def test_a_pickle_is_refused_and_not_run(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Bomb()}, tmp_path / files.FILE)
    refused(tmp_path, "not safetensors")
    assert not (tmp_path / "ran").exists()


def test_what_only_the_safetensors_library_refuses_is_refused_in_the_same_way(saved: Path):
    header, data = split(saved)
    header["\ud800"] = header.pop("norm.weight")  # json, but half of a character: no name
    join(saved, header, data)
    refused(saved, "must be a safetensors file, got")


def edit_header(change: Callable[[dict], object]) -> Callable[[dict], None]:
    return lambda header: change(header) and None


def edit_weight(name: str, **changes: object) -> Callable[[dict], None]:
    def edit(header: dict) -> None:
        listing = listing_of(header)
        listing["weights"][name].update(changes)
        set_listing(header, listing)

    return edit


def edit_config(config: object) -> Callable[[dict], None]:
    return lambda header: header["__metadata__"].update(
        config=config if isinstance(config, str) else json.dumps(config)
    )


HUGE = 2**60


@pytest.mark.parametrize(
    ("edit", "match"),
    [
        # the metadata
        (
            edit_header(lambda h: h["__metadata__"].update(version="2")),
            "version must be at most 1, got 2: needs a newer",
        ),
        (edit_header(lambda h: h["__metadata__"].update(version="1.0")), "version must be a number from 1, got '1.0'"),
        (edit_header(lambda h: h["__metadata__"].update(version="0")), "version must be a number from 1, got '0'"),
        (edit_header(lambda h: h["__metadata__"].pop("version")), "version must be a number from 1, got ''"),
        (edit_header(lambda h: h["__metadata__"].pop("config")), "config must be json"),
        (edit_config("{"), "config must be json"),
        (edit_config([1]), r"config must be a json object, got \[1\]"),
        (edit_config({"weights": {}}), "config must hold the objects config and weights"),
        (edit_config({"weights": [], "config": {}}), "config must hold the objects config and weights"),
        (edit_config({"weights": {"a": 3}, "config": {}}), "weight 'a': listing must be bits, .* got 3"),
        # the tensors' entries
        (
            edit_header(lambda h: h.update(extra=3)),
            "tensor 'extra': entry must be dtype, shape and data_offsets, got 3",
        ),
        (edit_header(lambda h: h["small.codes"].update(more=1)), "tensor 'small.codes': entry must be dtype, shape"),
        (edit_header(lambda h: h["small.codes"].update(dtype="U7")), "dtype must be one of .* got U7"),
        (edit_header(lambda h: h["small.codes"].update(dtype=["U8"])), "dtype must be one of"),
        (edit_header(lambda h: h["small.codes"].update(dtype="U" * 5000)), "dtype must be one of"),
        (edit_header(lambda h: h["small.codes"].update(shape=[5, 13])), r"must span 65 bytes for U8 \[5, 13\], got 70"),
        (edit_header(lambda h: h["small.codes"].update(shape=[HUGE])), "shape must be at most 16 sizes below"),
        (edit_header(lambda h: h["small.codes"].update(shape=[-5, -14])), "shape must be at most 16 sizes below"),
        (edit_header(lambda h: h["small.codes"].update(shape=[5.0, 14])), "shape must be at most 16 sizes below"),
        (edit_header(lambda h: h["small.codes"].update(shape=[True, 70])), "shape must be at most 16 sizes below"),
        (edit_header(lambda h: h["small.codes"].update(shape=[1] * 17)), "shape must be at most 16 sizes below"),
        (edit_header(lambda h: h["small.codes"].update(shape=70)), "shape must be at most 16 sizes below"),
        (edit_header(lambda h: h["small.codes"].update(shape=[5, 15])), r"must span 75 bytes for U8 \[5, 15\], got 70"),
        (edit_header(lambda h: h["small.codes"].update(shape=[2**47] * 2)), "data_offsets must span 1980704.* bytes"),
        (edit_header(lambda h: h["small.codes"].update(data_offsets=[0])), r"data_offsets must be 2 sizes, got \[0\]"),
        (edit_header(lambda h: h["small.codes"].update(data_offsets=[70, 0])), "must span 70 bytes .* got -70"),
        (
            edit_header(lambda h: h["small.codes"].update(data_offsets=[0, 70])),
            "must start at byte .* of the data, got 0",
        ),
        (edit_header(lambda h: h.pop("norm.weight")), "must start at byte .* of the data, got"),
        # a packed weight against its tensors
        (
            edit_header(lambda h: h.update({"x": h.pop("tiled.codes")})),
            "weight 'tiled': tensor tiled.codes must be in the",
        ),
        (
            edit_header(lambda h: h.update({"x": h.pop("tiled.scale")})),
            "weight 'tiled': tensor tiled.scale must be in the",
        ),
        (edit_header(lambda h: h["tiled.codes"].update(dtype="I8")), "codes must be U8, got I8"),
        (edit_header(lambda h: h["tiled.levels"].update(dtype="I32")), "levels must be F32, got I32"),
        (edit_header(lambda h: h["tiled.scale"].update(dtype="I32")), "scale must be F32 or F16 or BF16, got I32"),
        (
            edit_header(lambda h: h["tiled.codes"].update(shape=[1, 512])),
            r"codes must have shape \[512\] .* got \[1, 512\]",
        ),
        (
            edit_header(lambda h: h["tiled.scale"].update(shape=[32])),
            r"scale must have shape \[1, 2, 16\] .* got \[32\]",
        ),
        (
            edit_header(lambda h: h["tiled.levels"].update(shape=[4, 4])),
            r"levels must have shape \[1 to 16\], got \[4, 4\]",
        ),
        (
            edit_weight("tiled", bits=2, shape=[16, 128], group_size=64),
            r"levels must have shape \[1 to 4\], got \[16\]",
        ),
        (edit_weight("tiled", bits=8, group_size=64), r"codes must have shape \[1024\] for 8 bits, .* got \[512\]"),
        (edit_weight("tiled", bits=5), r"bits must be one of \[1, 2, 3, 4, 8\], got 5"),
        (edit_weight("tiled", bits=True), "bits must be one of .* got True"),
        (edit_weight("tiled", bits="4"), "bits must be one of .* got 4"),
        (edit_weight("tiled", group_size=0), "group_size must divide K=64 .* got 0"),
        (edit_weight("tiled", group_size=16), "group_size must divide K=64 .* got 16"),
        (edit_weight("tiled", group_size=None), "group_size must be a number, got None"),
        (
            edit_weight("tiled", group_size=64),
            r"scale must have shape \[1, 1, 16\] .* group_size=64 .* got \[1, 2, 16\]",
        ),
        (edit_weight("tiled", layout="rows"), "layout must be 't16' for 4 bits .* got 'rows'"),
        (edit_weight("small", layout="t16"), "layout must be 'rows' for 3 bits .* got 't16'"),
        (edit_weight("tiled", layout=["t16"]), "layout must be 't16'"),
        (edit_weight("tiled", shape=[32, 64]), r"codes must have shape \[1024\] .* got \[512\]"),
        (edit_weight("tiled", shape=[2**40, 2**40]), "group_size|codes must have shape"),
        (edit_weight("tiled", shape=[HUGE, 64]), "shape must be 2 to 16 sizes from 1"),
        (edit_weight("tiled", shape=[0, 64]), "shape must be 2 to 16 sizes from 1"),
        (edit_weight("tiled", shape=[1024]), "shape must be 2 to 16 sizes from 1"),
        (edit_weight("tiled", more=1), "weight 'tiled': listing must be bits, group_size, shape and layout"),
    ],
)
def test_a_wrong_header_is_refused_before_any_tensor_is_made(
    saved: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable[[dict], None], match: str
):
    def unreachable(*_: object) -> None:
        raise AssertionError("a tensor was read")

    header, data = split(saved)
    edit(header)
    join(saved, header, data)
    monkeypatch.setattr(files, "safe_open", unreachable)
    refused(saved, match)


def test_rewriting_the_same_header_is_accepted(saved: Path):
    join(saved, *split(saved))  # what the refusals above edit is what they are refused for
    assert files.read(saved)[2] == CONFIG


@pytest.mark.parametrize("shape", [(16, 64), (5, 37)])
def test_codes_without_a_level_are_refused(tmp_path: Path, shape: tuple[int, int]):
    w = make(*shape, bits=4)
    assert w.unpack().max() == 15
    files.write(tmp_path, {"w": dataclasses.replace(w, levels=w.levels[:15].clone())}, {}, {})
    refused(tmp_path, r"weight 'w': .*codes must lie in \[0, 15\), got .*15")


@pytest.mark.parametrize("shape", [(16, 64), (5, 37)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["levels", "scale"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, shape: tuple[int, int], value: float, field: str):
    w = make(*shape, bits=4)
    bad = getattr(w, field).clone()
    bad.view(-1)[2] = value
    files.write(tmp_path, {"w": dataclasses.replace(w, **{field: bad})}, {}, {})
    refused(tmp_path, f"weight 'w': .*{field} must be finite .* got {value}")
