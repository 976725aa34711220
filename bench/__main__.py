"""python -m bench quant --device cpu|cuda [--quick] --json FILE"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

from qkernels import __version__

from . import quant


def machine(device: str) -> dict:
    """What a row's numbers depend on: hardware, versions, commit."""
    cpu = "unknown"
    if Path("/proc/cpuinfo").exists():
        names = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = f"{names[0]} x{os.cpu_count()}" if names else cpu
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else cpu, "threads": torch.get_num_threads(),
        "isa": torch.ops.qkernels_cpu.isa("") if device == "cpu" else "", "python": platform.python_version(),
        "torch": torch.__version__, "qkernels": __version__, "commit": commit,
    }  # fmt: skip


def line(row: dict) -> str:
    torch_column = f"{row['x_torch']:7.1f}x" if "x_torch" in row else " " * 8
    return (
        f"{row['op']:6s} {row['variant']:24s} {row['bits']:2d}  {row['dtype']:9s}{row['cache']:8s} {row['pass']:8s}"
        f"{row['median_us']:9.0f} us {row['x_eager']:8.1f}x {row['x_compiled']:8.1f}x {torch_column}"
        f"{row['gbps']:7.1f} of {row['roof_gbps']:6.1f} GB/s  {row['saved_bytes_per_element']:5.1f} of {row['eager_saved_bytes_per_element']:5.1f} B"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suite", choices=["quant"])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="4 bit, float32, hot only")
    parser.add_argument("--json", type=Path, help="write the rows here, one JSON object a line")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench: --device cuda needs a GPU that torch can see", file=sys.stderr)
        return 2
    about = machine(args.device)
    print("  ".join(f"{k} {v}" for k, v in about.items() if v))
    print(f"{'op':6s} {'variant':24s} bits dtype    cache    pass          ours     x eager x compiled x torch   bandwidth            saved, ours of eager")
    rows = []
    for row in quant.run(args.device, args.quick):
        print(line(row), flush=True)
        rows.append(row | about)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text("".join(json.dumps(r) + "\n" for r in rows))
        print(f"{len(rows)} rows in {args.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
