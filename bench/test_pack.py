"""pytest-benchmark's view of the packed layout: ``pytest bench/test_pack.py --benchmark-enable``; without it each runs
once."""

import pytest
import torch

from qkernels import pack

N, K = 14336, 4096


@pytest.mark.parametrize("how", ["native", "torch"])
@pytest.mark.parametrize("bits", tuple(pack.PLANES))
@pytest.mark.parametrize("way", ["pack", "unpack"])
def test_t16(benchmark, way, bits, how, monkeypatch):
    """``LutWeight.pack`` of codes [14336, 4096], with its checks, and ``unpack``."""
    if how == "torch":
        monkeypatch.setattr(pack, "_compiled", lambda data: False)
    codes = torch.randint(0, 2**bits, (N, K), dtype=torch.uint8)
    w = pack.LutWeight.pack(codes, torch.randn(2**bits), torch.ones(N), bits=bits)
    benchmark.group = f"{way}, {bits} bits"
    if way == "pack":
        assert torch.equal(benchmark(pack.LutWeight.pack, codes, w.levels, torch.ones(N), bits=bits).codes, w.codes)
    else:
        assert torch.equal(benchmark(w.unpack), codes)
