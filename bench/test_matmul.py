"""The matmul bench gives whole rows; ``pytest bench``."""

import argparse
import math

import pytest
import torch

from . import matmul, plot
from .__main__ import line, shape
from .matmul import measure


@pytest.mark.parametrize(
    ("bits", "dtype"), [(4, torch.float32), (4, torch.bfloat16), (3, torch.float16), (4, torch.int8), (8, torch.int8)]
)
def test_a_row_is_whole(bits, dtype, monkeypatch):
    monkeypatch.setattr("bench.peers.BETWEEN", 1 << 16)
    row = measure(32, 256, 2, bits, 64, dtype, "bfloat16", "cpu", "rotated", 0.0)
    numbers = ("median_us", "dense_us", "x_dense", "gbps", "pct_roof", "limit_us") + (
        ("peer_us", "x_peer") if bits == 4 or dtype == torch.int8 else ()
    )
    assert all(math.isfinite(row[name]) and row[name] > 0 for name in numbers)
    assert row["backend"] in ("cpu", "reference", "cpu int8")
    assert (row["peer"] is not None) == (bits == 4 or dtype == torch.int8)
    assert len(line("matmul", row)) == len(line("matmul", None))


@pytest.mark.parametrize(("seconds", "side"), [(1e-5, 2048), (1e-3, 1024), (0.01, 512), (9.0, 256)])
def test_products_that_take_long_are_of_smaller_squares(seconds, side, monkeypatch):
    monkeypatch.setattr(matmul.timeit, "repeat", lambda *_, **__: [seconds])  # of side 256
    assert matmul.square.__wrapped__(torch.bfloat16, "cpu").shape == (side, side)


def test_only_what_is_asked_for_is_measured(monkeypatch):
    monkeypatch.setattr(matmul, "measure", lambda *setting: setting)
    asked = {"bits": [3], "rows": [1, 4], "dtypes": ["float16"], "caches": ["hot"], "shapes": [shape("64x256")]}
    want = [(64, 256, M, 3, 128, torch.float16, "integers", "cpu", "hot", 2.0) for M in (1, 4)]
    assert list(matmul.run("cpu", False, levels="integers", repeat=2, **asked)) == want * 2
    assert len(list(matmul.run("cpu", False))) == 2 * 3 * 5 * 5 * 2
    assert {(row[5], row[8]) for row in matmul.run("cuda", False)} == {(torch.bfloat16, "rotated")}
    for wrong in ("4096", "64x100", "0x128", "axb"):
        with pytest.raises(argparse.ArgumentTypeError, match=wrong):
            shape(wrong)


def test_runs_of_a_setting_have_medians_and_a_row_for_each_peer():
    about = dict.fromkeys(matmul.SETTING, "any") | {"dense_us": 9, "pct_roof": 50}

    def row(us: float, a: float, b: float) -> dict:
        peers = {"peers_us": {"a": a, "b": b}, "x_peers": {"a": a / us, "b": b / us}}
        return about | {"median_us": us, "x_dense": 9 / us, "peer": "a", "peer_us": a, "x_peer": a / us} | peers

    alone = about | {"M": 2, "median_us": 5, "x_dense": 2}
    first, second, third = matmul.medians([row(2, 8, 6), row(1, 3, 7), alone, row(3, 9, 4)])
    assert (first["median_us"], first["x_dense"]) == (second["median_us"], second["x_dense"]) == (2, 4.5)
    assert [(r["peer"], r["peer_us"], r["x_peer"]) for r in (first, second)] == [("b", 6, 3), ("a", 8, 3)]
    assert third == alone and len(line("matmul", third)) == len(line("matmul", None))
    assert [r["x_peer"] for r in matmul.medians([about | {"median_us": 9, "x_dense": 1}, row(2, 8, 6)])] == [3, 4]


def test_a_picture_is_drawn(tmp_path):
    about = {"hardware": "a machine", "threads": 2, "N": 64, "K": 64, "dtype": "float32", "cache": "hot"}
    rows = [about | {"bits": b, "M": M, "x_dense": 8 / b, "limit_us": b, "dense_us": 9} for b in (2, 4) for M in (1, 8)]
    plot.speedups([*rows, *rows, rows[0] | {"bits": 3, "peer": "other", "peer_us": 3}], tmp_path / "new" / "a.png")
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
