"""The methods: what a quantizer config must offer, and the one list of them.

A new method writes ``ops/<method>/config.py`` and adds its class to ``METHODS``; modules, plans, files and the demo
know no method by name.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .ops.asq.config import ASQ
from .ops.cpq.config import CPQ
from .ops.daq.config import DAQ
from .ops.grids import Hardened
from .ops.lsq.config import LSQ
from .ops.post.config import POST
from .ops.soft_assign.config import DQ


class Method(Protocol):
    """A frozen dataclass: plain data (json can hold its fields) and a few pure functions.

    ``fixed(*parameters) -> Callable[[Tensor], Tensor] | None``, if there is one, is ``quantize`` for an activation's
    parameters that stay as they are, for a contiguous x and without gradients: the same bits for less of a small
    layer's time.

    ``integer_grid(*parameters) -> IntegerGrid`` says which integers an activation's x becomes, and a property
    ``integer_bits`` of how many bits they are. With both, and ``fixed``, ``lut_linear_int`` can quantize x, in layers
    whose ``use_integers`` is on.

    A field ``signed`` that is None is decided when the quantizer is calibrated. Where parameters and one call are not
    enough (an adapter network, other latents), the config has one more function,
    ``module(shape: Sequence[int] | None, *, dtype, device) -> nn.Module``, which returns its own quantizer in place of
    ``qkernels.nn.Quantizer``, with the same ``forward``, ``harden``, ``calibrate``, ``calibrated`` and ``config``. One
    that must know the layer's input has ``activation_module(channels, dim, *, dtype, device) -> nn.Module`` beside it:
    how many channels an activation has, and in which dimension; then its granularity is the weight's alone.
    """

    bits: int
    granularity: str | int
    parameters: tuple[str, ...]  # names of the trained parameters, each [P]
    positive: ClassVar[tuple[str, ...]]  # those that must be positive

    @property
    def n_levels(self) -> int:
        """How many levels the grid has: what decides the packed width."""
        ...

    def init(self, x: Tensor, P: int) -> dict[str, Tensor]:
        """Where the parameters start for x (finite, not empty): name -> float32 [P]."""
        ...

    def quantize(self, x: Tensor, *parameters: Tensor, samples: int = 1) -> Tensor:
        """One call of the public op; parameters in the order of ``parameters``. samples: how many x consists of."""
        ...

    def harden(self, x: Tensor, *parameters: Tensor) -> Hardened:
        """The codes, levels and scale of ``quantize`` (see ``qkernels.harden``)."""
        ...


METHODS: dict[str, type] = {method.__name__: method for method in (LSQ, POST, CPQ, DAQ, DQ, ASQ)}


def presets() -> dict[str, tuple[type, dict[str, Any]]]:
    """name -> (class, its options but bits): what people call a method, and how the demo runs it.

    A class may list its own in ``presets: ClassVar[dict[str, dict]]``; the others have one, of their name, with one
    scale per row and all else as the paper has it.
    """
    named = {}
    for method in METHODS.values():
        for name, options in getattr(method, "presets", {method.__name__: {"granularity": "row"}}).items():
            named[name] = (method, options)
    return named


def describe(config: Method) -> str:
    """``LSQ(bits=4, row)``: bits, granularity, "unsigned", and what else differs from the defaults."""
    parts = [f"bits={config.bits}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name == "granularity":
            parts.append(value if isinstance(value, str) else f"groups of {value}")
        elif field.name == "signed":
            parts += ["unsigned"] if value is False else []
        elif field.name != "bits" and value != field.default:
            parts.append(f"{field.name}={value}")
    return f"{type(config).__name__}({', '.join(parts)})"


def to_dict(config: Method) -> dict[str, Any]:
    """The config as json can hold it: ``{"method": "LSQ", "bits": 4, ...}``."""
    return {"method": type(config).__name__, **dataclasses.asdict(config)}


def from_dict(data: dict[str, Any]) -> Method:
    """Invert ``to_dict``. ValueError for an unknown method or option; the config checks the values."""
    options = dict(data)
    name = options.pop("method", None)
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {name!r}")
    known = {field.name for field in dataclasses.fields(METHODS[name])}
    if unknown := sorted(options.keys() - known):
        raise ValueError(f"{name}: options must be among {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return METHODS[name](**options)


def is_config(value: object) -> bool:
    """Whether value is a method's config (an instance, not the class)."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type) and hasattr(value, "quantize")
