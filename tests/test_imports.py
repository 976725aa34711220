"""What import costs and needs, checked in fresh interpreters."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent / "qkernels"


def python(source: str, **environment: str) -> str:
    import os

    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", textwrap.dedent(source)],
        env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_trains_without_triton_and_compiled_kernels():
    out = python("""
        import sys, importlib.util as util, pathlib
        sys.modules["triton"] = None
        find, exists = util.find_spec, pathlib.Path.exists
        util.find_spec = lambda name, *a: None if name == "triton" else find(name, *a)
        pathlib.Path.exists = lambda p: False if p.name == "libqkernels.so" else exists(p)
        import torch, qkernels as qk
        from qkernels import backends
        assert backends.table()["lsq"] == {"cpu": "-", "cuda": "-", "triton": "-", "reference": "yes"}, backends.table()
        x, s = torch.randn(9, requires_grad=True), torch.tensor([0.1], requires_grad=True)
        qk.lsq(x, s, bits=4).sum().backward()
        assert x.grad is not None and s.grad is not None
        try:
            qk.lsq(x, s, bits=4, backend="cpu")
        except NotImplementedError as e:
            print(e)
    """)
    assert "lsq: backend='cpu' cannot run: the compiled kernels are not built" in out


def test_import_needs_torch_and_safetensors_only():
    heavy = ["triton", "matplotlib", "jinja2", "sklearn", "typer", "rich", "numpy.f2py", "pytest"]
    out = python(f"""
        import sys
        import torch
        before = set(sys.modules)
        import qkernels
        print([m for m in {heavy} if m in set(sys.modules) - before])
    """)
    assert out.strip() == "[]"


def test_import_costs_under_100_ms_beyond_torch():
    """From compiled files, as an install has them. The best of five new processes: what else runs here only adds."""
    source = """
        import time
        import torch, safetensors
        start = time.process_time()
        import qkernels
        print(time.process_time() - start)
    """
    seconds = min(float(python(source, PYTHONDONTWRITEBYTECODE="")) for _ in range(5))
    assert seconds < 0.1, f"{seconds:.3f} s"


def test_importing_the_ops_again_is_harmless():
    python("""
        import importlib, qkernels, sys
        for name in [n for n in sys.modules if n.startswith("qkernels.ops") and n.endswith(".op")]:
            importlib.reload(sys.modules[name])
    """)


def imports(path: Path) -> set[str]:
    """Absolute names of what a file imports."""
    package = ["qkernels", *path.relative_to(ROOT).parent.parts]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{a.name}" for a in node.names}
    return found


def test_implementations_do_not_import_each_other():
    shared = ("qkernels.ops.ste", "qkernels.ops.grids")
    for path in ROOT.glob("ops/*/reference.py"):
        own = [n for n in imports(path) if n.startswith("qkernels")]
        assert all(n.startswith(shared) for n in own), (
            f"{path}: a reference imports only torch and ops/{{ste,grids}}, got {own}"
        )
    for path in ROOT.glob("ops/**/*.py"):
        upward = (
            "qkernels.quant",
            "qkernels.pack",
            "qkernels.matmul",
            "qkernels.nn",
            "qkernels.planning",
            "qkernels.model",
            "qkernels.files",
        )
        own = [n for n in imports(path) if n.startswith(upward)]
        assert not own or path.parent.name.startswith("lut_linear") or path.name == "config.py", f"{path} imports {own}"
    for op in (p for p in ROOT.glob("ops/*") if p.is_dir()):
        for path in op.glob("*.py"):
            others = [n for n in imports(path) if n.startswith("qkernels.ops.") and n.split(".")[2] in
                      {p.name for p in ROOT.glob("ops/*") if p.is_dir()} - {op.name}]  # fmt: skip
            if path.name in ("op.py", "config.py"):  # a contract may use another, not what implements it
                others = [n for n in others if not n.endswith(".op") and ".config." not in n]
            assert not others, f"{path} imports another op: {others}"
