"""The command line. Without arguments: what this install can run, to paste into a bug report; needs no extra."""

import importlib.metadata
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

import torch

from . import __version__, backends

# module -> package, of what a command needs beyond the library itself
CLI = {"typer": "typer", "rich": "rich"}
DEMO = CLI | {"sklearn": "scikit-learn", "matplotlib": "matplotlib", "jinja2": "jinja2"}


def main() -> int:
    """``qkernels ...`` and ``python -m qkernels ...``; returns the exit status."""
    arguments = sys.argv[1:]
    if not arguments:
        print(info())
        return 0
    needs, extra = (DEMO, "demo") if arguments[0] == "demo" else (CLI, "cli")
    if missing := [package for module, package in needs.items() if find_spec(module) is None]:
        command = f"qkernels {arguments[0]}"
        print(f'{command} needs {", ".join(missing)}: pip install "qkernels[{extra}]"', file=sys.stderr)
        return 2
    from .cli import app

    return app(prog_name="qkernels")


def info() -> str:
    """Versions, hardware and the table of ops and backends, as text."""
    facts = environment()
    width = max(map(len, facts)) + 2
    lines = [f"{name:{width}s}{value}" for name, value in facts.items()]
    return "\n".join([*lines, "", ops_table()])


def environment() -> dict[str, str]:
    """What numbers and bugs depend on: name -> text, in the order to show."""
    versions = {"qkernels": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in ("triton", "safetensors"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions | {"build": _build(), "system": _system(), "cpu kernels": _isa(), "gpu": _gpu()}


def ops_table() -> str:
    """Each op and where it runs, then a line for each backend that is missing or asks to be asked."""
    rows = backends.table()
    head = ["op", *backends.NAMES]
    cells = [[op, *(have[b] for b in backends.NAMES)] for op, have in rows.items()]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(len(head))]
    lines = ["   ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *cells]]
    return "\n".join([*lines, "", *notes(rows)])


def notes(rows: dict[str, dict[str, str]]) -> list[str]:
    """One line for each backend that no op of this install has, and one on what "on request" means."""
    lines = []
    for backend in backends.NAMES:
        if all(have[backend] == "-" for have in rows.values()):
            lines.append(f"{backend}: missing: {_why_missing(backend)}")
    if any("on request" in have.values() for have in rows.values()):
        lines.append(
            'on request: runs with backend="..."; not chosen by itself until a GPU result marks the op as verified'
        )
    return lines


def _why_missing(backend: str) -> str:
    if backend in backends.MISSING:
        return backends.MISSING[backend]
    if backend == "cuda" and torch.version.cuda is None:
        return "this torch is built without CUDA"
    return "no op of this build has a kernel for it"


def _build() -> str:
    try:
        from . import _C
    except ImportError:
        return "none: pure Python and Triton"
    built = _C.build_info()
    cuda = f"CUDA {built['cuda']}" if built["cuda"] else "no CUDA"
    target = int(built["torch_target"], 16)  # 0x020b...: the first two bytes are 2 and 11
    return f"compiler {built['compiler']}, torch >= {target >> 56}.{target >> 48 & 255}, {cuda}"


def _system() -> str:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    return f"{platform.system()} {platform.machine()}, {name}, {os.cpu_count()} cores"


def _isa() -> str:
    if not backends.HAS_COMPILED:
        return "none"
    try:
        return torch.ops.qkernels_cpu.isa("")
    except RuntimeError:
        return f"QKERNELS_ISA={os.environ.get('QKERNELS_ISA')} is none that this CPU has: they will not run"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can see"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}, CUDA {torch.version.cuda}"


if __name__ == "__main__":
    sys.exit(main())
