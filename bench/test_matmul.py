"""The matmul bench gives whole rows; ``pytest bench``."""

import math

import pytest
import torch

from .__main__ import line
from .matmul import measure


@pytest.mark.parametrize(
    ("bits", "dtype"), [(4, torch.float32), (4, torch.bfloat16), (3, torch.float32), (4, torch.int8)]
)
def test_a_row_is_whole(bits, dtype, monkeypatch):
    monkeypatch.setattr("bench.matmul.BETWEEN", 1 << 16)
    row = measure(32, 256, 2, bits, 64, dtype, "cpu", "rotated", 0.0)
    numbers = ("median_us", "dense_us", "x_dense", "gbps", "pct_roof") + (("peer_us", "x_peer") if bits == 4 else ())
    assert all(math.isfinite(row[name]) and row[name] > 0 for name in numbers)
    assert row["backend"] in ("cpu", "reference", "cpu post-int8") and ("peer" in row) == (bits == 4)
    assert len(line("matmul", row)) == len(line("matmul", None))
