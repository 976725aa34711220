"""Backends: the one place that knows which kernels exist and which one runs.

An op is a schema whose last argument is ``str backend``; a backend is a callable that takes the other arguments.

    lsq(x, step) -> resolve("lsq", ...) = "cpu" -> torch.ops.qkernels.lsq_fwd(..., "cpu") -> kernel

and an eager call skips the op (see ``is_plain``).

Where kernels come from:
  - compiled ones are found by name: ``QK_EXPORT(cpu, lsq_fwd, ...)`` in ``csrc/`` is the backend "cpu" of ``lsq_fwd``;
  - Triton ones are found by place: ``lsq_fwd`` in ``ops/lsq/triton.py``, imported at the first call;
  - Python ones register with ``@kernel("lut_linear", "reference")``.

``reference`` needs no entry: it is the plain-PyTorch definition of the op, and always there.
"""

import json
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.compiler import is_compiling

PACKAGE = Path(__file__).parent
LIBRARY = PACKAGE / "libqkernels.so"
HAS_COMPILED = LIBRARY.exists()
HAS_TRITON = find_spec("triton") is not None
NAMES = ("cpu", "cuda", "triton", "reference")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

# backend -> why it is absent from every op of this install
MISSING: dict[str, str] = {}
if HAS_COMPILED:  # built: load it, and let a broken build raise rather than fall back in silence
    torch.ops.load_library(str(LIBRARY))
else:
    MISSING["cpu"] = "the compiled kernels are not built (pip install needs a C++ compiler, cmake and ninja)"
    MISSING["cuda"] = MISSING["cpu"]
if not HAS_TRITON:
    MISSING["triton"] = "the package triton is not installed"

_PLAIN = (Tensor, torch.nn.Parameter)
_in_functorch = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack

_OPS: dict[str, dict[str, Callable]] = {}
_CALLS: dict[str, Callable] = {}
_HAVE: dict[str, tuple[str, ...]] = {}  # function -> backends that have all its ops
_library = torch.library.Library("qkernels", "FRAGMENT")


def define(
    schema: str, fake: Callable, package: str, reference: Callable | None = None, auto: Callable | None = None
) -> Callable:
    """Register ``torch.ops.qkernels.<op>`` and return a function that calls it; a second time is harmless.

    schema: ``"lsq_fwd(Tensor x, ..., str backend) -> Tensor"``.
    fake: the same arguments -> tensors of the right shape, strides and dtype (no data), on the meta device.
    package: ``__package__`` of the op's folder, where ``triton.py`` may lie.
    reference: the op in plain PyTorch, for ops that an exported graph holds. They take the backend "auto" too, which
        each call resolves anew by its first tensor: a graph exported on a CPU runs on a GPU.
    auto: all there is of an op that has no kernels of its own. Its one backend is "auto"; no table of backends has it.
    """
    op = schema.split("(")[0]
    if op in _CALLS:
        return _CALLS[op]
    kernels = _OPS[op] = {}
    if auto is not None:
        kernels["auto"] = auto
    else:
        for backend in ("cpu", "cuda"):
            namespace = getattr(torch.ops, f"qkernels_{backend}")
            if HAS_COMPILED and hasattr(namespace, op):
                kernels[backend] = getattr(namespace, op).default
        if HAS_TRITON and (PACKAGE / "ops" / package.rsplit(".", 1)[-1] / "triton.py").exists():
            kernels["triton"] = _late(f"{package}.triton", op)
        if reference is not None:
            kernels["reference"] = reference
            kernels["auto"] = lambda x, *args: fastest(op, x)(x, *args)
        _note(op)

    def run(*args):
        return kernels[args[-1]](*args[:-1])

    _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(op, run, "CompositeExplicitAutograd")
    _library.impl(op, fake, "Meta")  # register_fake does the same, and looks up source lines: the import would wait
    overload = getattr(torch.ops.qkernels, op).default
    torch.library.register_vmap(f"qkernels::{op}", partial(one_by_one, overload), lib=_library)

    def call(*args):
        return (run if is_plain(args[0]) else overload)(*args)

    _CALLS[op] = call
    return call


def direct(op: str) -> Callable:
    """``qkernels._C.<op>``: the CPU's kernel without torch's dispatcher, for tensors that nothing else looks at.

    It returns None where that does not hold, and always where there is no such function: the kernels were built for
    another Python, or torch is one that it does not know. A ``_C`` that does not import is a broken build, and raises.
    """
    own = HAS_COMPILED and find_spec("qkernels._C") and getattr(import_module("qkernels._C"), op, None)
    return own or (lambda *args: None)


def is_plain(x: Tensor) -> bool:
    """Whether nothing looks at the ops that run on x: no compiler, no torch.func, no mode, no subclass of Tensor.

    Then a kernel is called without the way through the dispatcher, which costs more than it on a small tensor, and
    several times that where a large one has just gone through the caches.
    """
    return not (is_compiling() or _in_functorch() or _modes() or type(x) not in _PLAIN)


def one_by_one(op: Callable, info: object, in_dims: Sequence[int | None], *args) -> tuple:
    """``op`` under vmap: one call for each element of the batch, and what they return stacked.

    Each result is to the bit what the element gives alone. An empty batch takes its shapes from a call on zeros.
    """

    def element(i: int) -> list:
        return [a.select(d, i).contiguous() if isinstance(d, int) else a for a, d in zip(args, in_dims, strict=True)]

    zeros = [
        a.sum(d) if isinstance(d, int) else a  # a list of ints has a list of None
        for a, d in zip(args, in_dims, strict=True)
        if not info.batch_size
    ]
    calls = [op(*element(i)) for i in range(info.batch_size)] or [op(*zeros)]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls)[: info.batch_size], 0
    return tuple(torch.stack(each)[: info.batch_size] for each in zip(*calls, strict=True)), (0,) * len(calls[0])


def _late(module: str, name: str) -> Callable:
    """The function ``name`` of ``module``, imported when it is first called: Triton costs more to import than we do."""

    def call(*args):
        return getattr(import_module(module), name)(*args)

    return call


def kernel(op: str, backend: str) -> Callable:
    """Decorator: this Python function is ``op`` on ``backend``."""

    def add(fn: Callable) -> Callable:
        _OPS[op][backend] = fn
        _note(op)
        return fn

    return add


def backends_of(name: str) -> tuple[str, ...]:
    """The backends that have every op of the public function ``name`` (forward and backward), then "reference"."""
    return _HAVE.get(name, ("reference",))


def _function(op: str) -> str:
    """The public function that an op belongs to: "lsq" for "lsq_fwd"."""
    return op.removesuffix("_fwd").removesuffix("_bwd")


def _note(op: str) -> None:
    """Bring _HAVE up to date after a change to ``op``: at definition, so that no call or compiler sees it change."""
    name = _function(op)
    ops = [kernels for other, kernels in _OPS.items() if _function(other) == name]
    _HAVE[name] = (*(b for b in NAMES[:-1] if all(b in kernels for kernels in ops)), "reference")


def names() -> list[str]:
    """The public functions that have ops: ["lsq", ...]."""
    return sorted(_HAVE)


@cache
def verified() -> dict[str, dict[str, str]]:
    """function -> backend -> the committed GPU result that shows it right there (``tuned/verified.json``)."""
    return json.loads((PACKAGE / "tuned" / "verified.json").read_text())


def refusal(name: str, backend: str, x: Tensor, dtypes: Sequence[torch.dtype] = FLOATS) -> str | None:
    """Why ``backend`` cannot run ``name`` on ``x``, or None if it can."""
    if backend not in NAMES:
        return f"no such backend (there are {', '.join(NAMES)})"
    if backend == "reference":
        return None
    if backend not in backends_of(name):
        return MISSING.get(backend, f"{name} has no {backend} kernel in this build")
    if x.dtype not in dtypes:
        return f"x is {x.dtype}, needs {' or '.join(str(d) for d in dtypes)}"
    device = "cpu" if backend == "cpu" else "cuda"
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if x.device.type != device and not (interpreted and x.device.type == "cpu"):
        return f"x is on {x.device}, needs a {device} tensor"
    return None


def asked() -> str | None:
    """What the environment variable QKERNELS_BACKEND says. (os.environ raises and catches for what is not there.)"""
    behind = getattr(os.environ, "_data", None) if os.name == "posix" else None  # the dict behind it, of bytes
    if behind is not None and b"QKERNELS_BACKEND" not in behind:
        return None
    return os.environ.get("QKERNELS_BACKEND") or None


def resolve(name: str, x: Tensor, requested: str | None, dtypes: Sequence[torch.dtype] = FLOATS) -> str:
    """The backend that will run ``name`` on ``x``.

    An explicit request (argument, else the environment variable QKERNELS_BACKEND) runs there or raises
    NotImplementedError with the reason. Otherwise "cpu" on a CPU, and on a GPU the first of "cuda" and "triton" that
    can and that a committed result marks as verified; else "reference".
    """
    if wanted := requested or asked():
        if why := refusal(name, wanted, x, dtypes):
            asking = "backend" if requested else "QKERNELS_BACKEND"
            raise NotImplementedError(f"{name}: {asking}={wanted!r} cannot run: {why}")
        return wanted
    if x.is_cpu:
        return "cpu" if x.dtype in dtypes and "cpu" in backends_of(name) else "reference"
    for backend in ("cuda", "triton") if x.is_cuda else ():
        if backend in verified().get(name, {}) and refusal(name, backend, x, dtypes) is None:
            return backend
    return "reference"


def fastest(op: str, x: Tensor) -> Callable:
    """The kernel of ``op`` that runs on ``x`` where no backend is asked for: ``resolve``, without the dispatcher."""
    return _OPS[op][resolve(_function(op), x, None)]


def table() -> dict[str, dict[str, str]]:
    """function -> backend -> "yes", "on request" (never yet run on a GPU), or "-"; ``python -m qkernels`` prints it."""
    rows = {}
    for name in names():
        have = backends_of(name)
        rows[name] = {
            b: "-"
            if b not in have
            else "on request"
            if b in ("cuda", "triton") and b not in verified().get(name, {})
            else "yes"
            for b in NAMES
        }
    return rows
