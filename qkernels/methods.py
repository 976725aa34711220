"""The methods: what a quantizer config must offer, and the one list of them.

A new method writes ``ops/<method>/config.py`` and adds its class to ``METHODS``; modules, plans, files and the demo
know no method by name.
"""

import dataclasses
from typing import Any, ClassVar, Protocol

from torch import Tensor

from .ops.cpq.config import CPQ
from .ops.grids import Hardened
from .ops.lsq.config import LSQ
from .ops.post.config import POST


class Method(Protocol):
    """A frozen dataclass: plain data (json can hold its fields) and a few pure functions.

    A field ``signed`` that is None is decided when the quantizer is calibrated. Where parameters and one call are not
    enough (an adapter network, other latents), the config has one more function,
    ``module(shape: Sequence[int] | None, *, dtype, device) -> nn.Module``, which returns its own quantizer in place of
    ``qkernels.nn.Quantizer``, with the same ``forward``, ``harden``, ``calibrate``, ``calibrated`` and ``config``.
    """

    bits: int
    granularity: str | int
    parameters: ClassVar[tuple[str, ...]]  # names of the trained parameters, each [P]
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


METHODS: dict[str, type] = {method.__name__: method for method in (LSQ, POST, CPQ)}


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
