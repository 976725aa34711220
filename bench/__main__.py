"""python -m bench quant|matmul --device cpu|cuda [--quick] --json FILE"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from qkernels import __version__

from . import matmul, plot, quant
from .subjects import OPS
from .timing import keep_memory


def machine(device: str) -> dict:
    """What a row's numbers depend on: hardware, versions, commit."""
    cpu = "unknown"
    if Path("/proc/cpuinfo").exists():
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = f"{names[0]} x{os.cpu_count()}" if names else cpu
    commit = "unknown"
    if shutil.which("git"):
        described = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
        commit = described.stdout.strip() or commit
    return {
        "hardware": torch.cuda.get_device_name() if device == "cuda" else cpu, "threads": torch.get_num_threads(),
        "isa": torch.ops.qkernels_cpu.isa("") if device == "cpu" else "", "python": platform.python_version(),
        "torch": torch.__version__, "qkernels": __version__, "commit": commit,
    }  # fmt: skip


OTHERS = ("eager", "compiled", "torch")
COLUMNS = {  # suite -> (heading, width, what of a row)
    "quant": (
        ("op", -5, lambda r: r["op"]),
        ("set up or against", -26, lambda r: r["variant"]),
        ("bits", 4, lambda r: r["bits"]),
        ("dtype", -8, lambda r: r["dtype"]),
        ("cache", -7, lambda r: r["cache"]),
        ("pass", -7, lambda r: r["pass"]),
        ("on", -6, lambda r: r["backend"]),
        ("ours us", 7, lambda r: f"{r['median_us']:.0f}"),
        *((f"x {o}", len(o) + 2, lambda r, key=f"x_{o}": f"{r[key]:.1f}" if key in r else "") for o in OTHERS),
        ("of copy", 7, lambda r: f"{100 * r['gbps'] / r['roof_gbps']:.0f} %"),
        ("saved B", 7, lambda r: f"{r['saved_bytes_per_element']:g}"),
    ),
    "matmul": (
        ("N", 5, lambda r: r["N"]),
        ("K", 5, lambda r: r["K"]),
        ("M", 4, lambda r: r["M"]),
        ("bits", 4, lambda r: r["bits"]),
        ("group", 5, lambda r: r["group"]),
        ("dtype", -8, lambda r: r["dtype"]),
        ("cache", -7, lambda r: r["cache"]),
        ("ours us", 7, lambda r: f"{r['median_us']:.0f}"),
        ("x dense", 7, lambda r: f"{r['x_dense']:.2f}"),
        ("of roof", 7, lambda r: f"{r['pct_roof']:.0f} %"),
        ("x peer", 6, lambda r: f"{r['x_peer']:.2f}" if r.get("x_peer") is not None else ""),
        ("peer", -16, lambda r: r.get("peer") or ""),
    ),
}
LEGEND = {
    "quant": "Times faster: medians of interleaved ratios. Of copy: share of a copy's bandwidth. "
    "Saved: bytes an element.",
    "matmul": "Times faster than F.linear on the float weight, and than the fastest peer: medians of interleaved "
    "ratios. Of roof: share of the bandwidth of a sum.",
}


def line(suite: str, row: dict | None) -> str:
    """A row as text; None: the headings."""
    cells = [(heading if row is None else str(get(row)), width) for heading, width, get in COLUMNS[suite]]
    return "  ".join(text.ljust(-width) if width < 0 else text.rjust(width) for text, width in cells)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def shape(text: str) -> tuple[int, int]:
    """ "4096x14336": rows and columns of a weight."""
    try:
        N, K = (int(n) for n in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a shape must be NxK, as 4096x14336, got {text!r}") from None
    if N < 1 or K < 128 or K % 128:
        raise argparse.ArgumentTypeError(f"N must be positive and K a multiple of 128, the group, got {text}")
    return N, K


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suite", choices=list(COLUMNS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--op", nargs="+", choices=list(OPS), default=list(OPS), help="only these (quant)")
    parser.add_argument("--bits", nargs="+", type=int, choices=matmul.BITS, help="only these (matmul)")
    parser.add_argument("--rows", nargs="+", type=positive, help="of x (matmul)")
    parser.add_argument("--dtype", nargs="+", choices=matmul.DTYPES, help="of x, only these (matmul)")
    parser.add_argument("--cache", nargs="+", choices=matmul.CACHES, help="only these (matmul)")
    parser.add_argument("--shape", nargs="+", type=shape, metavar="NxK", help="of the weight, only these (matmul)")
    parser.add_argument(
        "--repeat", type=positive, default=1, metavar="TIMES", help="go over all of it so often; then medians (matmul)"
    )
    parser.add_argument(
        "--levels",
        choices=["bfloat16", "float32", "integers"],
        default="bfloat16",
        help="what the levels are exactly: any values of that dtype, or the integers of LSQ (matmul)",
    )
    parser.add_argument("--plot", type=Path, help="draw the times faster than F.linear here (matmul; needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="few settings, and hot only")
    parser.add_argument("--json", type=Path, help="write the rows here, one JSON object a line")
    args = parser.parse_args()
    if args.plot and args.suite != "matmul":
        parser.error("--plot draws rows of matmul")
    if args.suite != "matmul" and (args.dtype or args.cache or args.shape or args.repeat > 1):
        parser.error("--dtype, --cache, --shape and --repeat choose rows of matmul")
    if args.device == "cuda" and "int8" in (args.dtype or ()):
        parser.error("--dtype int8 is lut_linear_int, which a GPU has no kernel for")
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench: --device cuda needs a GPU that torch can see", file=sys.stderr)
        return 2
    about = machine(args.device) | {"allocator": keep_memory()}
    print("  ".join(f"{k} {v}" for k, v in about.items() if v))
    print(LEGEND[args.suite])
    print(line(args.suite, None))
    rows = []
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text("")
    if args.suite == "quant":
        suite = quant.run(args.device, args.quick, args.op)
    else:
        which = args.bits, args.rows, args.levels, args.dtype, args.cache, args.shape, args.repeat
        suite = matmul.run(args.device, args.quick, *which)
    for row in suite:
        print(line(args.suite, row), flush=True)
        rows.append(row | about)
        if args.json:  # each as it comes: what stops early leaves what it has
            with args.json.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    if args.repeat > 1:
        print("Medians of the runs, a line for each peer:")
        for row in matmul.medians(rows):
            print(line(args.suite, row))
    if args.json:
        print(f"{len(rows)} rows in {args.json}")
    if args.plot:
        plot.speedups(rows, args.plot)
        print(f"picture in {args.plot}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
