"""Benchmarks: ``python -m bench quant --device cpu --json FILE``; and ``pytest bench``."""
