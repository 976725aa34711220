"""Benchmarks: `python -m bench quant --device cpu --json FILE`; `pytest bench` for pytest-benchmark's view of the same."""
