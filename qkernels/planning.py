"""What to quantize in a model, and how: rules, and the plan that they make."""

import contextlib
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from .methods import Method, describe, is_config
from .nn.linear import QuantConv2d, QuantLinear, refusal
from .nn.lut import LutConv2d, LutLinear, packed_bits
from .ops.calibration import blocks
from .pack import check_group_size, matrix_shape, t16_nbytes
from .tables import size, table

Match = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Target = Method | tuple[Method, Method | None] | None

QUANT: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}
LUT: dict[type[nn.Module], type[nn.Module]] = {QuantLinear: LutLinear, QuantConv2d: LutConv2d}


@dataclass(frozen=True)
class PlannedLayer:
    """One row of a plan. ``reason`` says why the layer stays as it is; None where it is quantized."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weight: Method | None
    activation: Method | None
    reason: str | None
    bytes_before: int
    bytes_after: int

    def cells(self) -> list[str]:
        method = note = ""
        bits = "-"
        if self.weight is not None:
            method, bits = describe(self.weight), str(self.weight.bits)
            if (stored := packed_bits(self.weight.n_levels)) != self.weight.bits:
                note = f"{self.weight.n_levels} levels: stored in {stored} bits"
        if self.activation is not None:
            method += f", input {describe(self.activation)}"
        after = "-" if self.weight is None else size(self.bytes_after)
        shape = " x ".join(map(str, self.shape))
        name, before = self.name or "(the model)", size(self.bytes_before)
        return [name, self.kind, shape, method or "-", bits, before, after, self.reason or note]


@dataclass(frozen=True, repr=False)
class Plan:
    """What ``prepare_`` will do, layer by layer, those left alone with the reason; ``print(plan)`` is the table.

    unmatched: rules and skips that fit no layer, as text.
    """

    layers: tuple[PlannedLayer, ...]
    unmatched: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[PlannedLayer, ...]:
        return tuple(layer for layer in self.layers if layer.reason is None)

    @property
    def skipped(self) -> tuple[PlannedLayer, ...]:
        return tuple(layer for layer in self.layers if layer.reason is not None)

    def __str__(self) -> str:
        head = ["layer", "kind", "shape", "method", "bits", "bytes before", "after", "note"]
        before = sum(layer.bytes_before for layer in self.layers)
        after = sum(layer.bytes_after for layer in self.layers)
        lines = [table(head, [layer.cells() for layer in self.layers], right={4, 5, 6})]
        count = f"{len(self.quantized)} of {len(self.layers)} layers quantized"
        lines.append(f"{count}, {size(before)} -> {size(after)} bytes")
        return "\n".join(lines + [f"note: {text} fits no layer" for text in self.unmatched])

    __repr__ = __str__


def plan(model: nn.Module, rules: Sequence[tuple[Match, Target]], *, skip: Sequence[Match] = ()) -> Plan:
    """What to quantize and how: for each layer the first rule that fits. Changes nothing.

        qk.plan(model, [("*.mlp.*", qk.POST(bits=4)), (nn.Linear, (qk.LSQ(bits=4), qk.LSQ(bits=8)))], skip=["lm_head"])

    Args:
        model: any module. Listed are the layers that own a parameter of 2 or more dimensions; ``nn.Linear`` and
            ``nn.Conv2d`` can be quantized. A layer registered under several names is one layer: each name may fit.
        rules: (match, target) in order. match: a glob on the full dotted name (``fnmatch``, case matters), a module
            class, or a function ``(name, module) -> bool``. target: the config of the weight, a pair (weight,
            activation), or None to leave the layer as it is.
        skip: matches of layers to leave as they are, before any rule.

    Raises:
        TypeError: a match or a target of another type.
        ValueError: a rule cannot be done on a layer it fits (a group size that does not divide K): names the layer.
    """
    if isinstance(rules, (str, Mapping)) or not isinstance(rules, Sequence):
        raise TypeError(f"plan: rules must be a sequence of (match, target), got {type(rules).__name__}")
    if isinstance(skip, str):
        raise TypeError(f"plan: skip must be a sequence of matches, got the str {skip!r}")
    parsed = [_parse_rule(rule) for rule in rules]
    for match in skip:
        _check_match(match)
    encoders = [m for m in model.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    fast = {id(layer) for encoder in encoders for layer in (encoder.linear1, encoder.linear2)}
    layers, used = [], set()
    for names, module in _layers(model):
        why = _why_not(module, id(module) in fast)
        weight = activation = None
        if why is None:
            for i, match in enumerate(skip):
                if _fits(match, names, module):
                    used.add(("skip", i))
                    why = f"skip: {_text(match)}"
                    break
        if why is None:
            for i, (match, target) in enumerate(parsed):
                if _fits(match, names, module):
                    used.add(("rule", i))
                    if target is None:
                        why = f"rule {_text(match)}: None"
                    else:
                        weight, activation = target
                    break
            else:
                why = "no rule fits"
        layers.append(_row(names[0], module, weight, activation, why))
    unmatched = [f"skip {_text(match)}" for i, match in enumerate(skip) if ("skip", i) not in used]
    unmatched += [f"rule {_text(match)}" for i, (match, _) in enumerate(parsed) if ("rule", i) not in used]
    return Plan(tuple(layers), tuple(unmatched))


def _layers(model: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """(its names, module) of each module that is a packed layer or owns a parameter of 2 or more dimensions."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    for key, module in modules.items():
        own = any(p is not None and p.dim() >= 2 for p in module._parameters.values())
        if own or isinstance(module, (*QUANT, LutLinear, LutConv2d)):
            yield names[key], module


def _why_not(module: nn.Module, fast_path: bool) -> str | None:
    """Why no rule can quantize this module, or None."""
    if isinstance(module, tuple(LUT)):
        return "quantized already"
    if isinstance(module, (LutLinear, LutConv2d)):
        return "packed already"
    for kind in QUANT:
        if isinstance(module, kind):
            if fast_path:
                return "nn.TransformerEncoderLayer's fast path uses its weight without calling it"
            return refusal(module, kind)
    return f"{type(module).__name__} has no quantized form ({' and '.join(k.__name__ for k in QUANT)} have)"


def _row(
    name: str, module: nn.Module, weight: Method | None, activation: Method | None, reason: str | None
) -> PlannedLayer:
    if isinstance(module, (LutLinear, LutConv2d)):
        shape, before = module.weight_shape, module.weight_lut.nbytes
    else:
        tensors = [p for p in module._parameters.values() if p is not None and p.dim() >= 2]
        shape = tuple(tensors[0].shape if tensors else module.weight.shape)  # a weight that is computed is no parameter
        before = sum(p.nbytes for p in tensors)
    after = before
    if weight is not None:
        with naming("plan", name):
            after = _packed_nbytes(shape, weight)
    kind = type(module).__name__
    return PlannedLayer(name, kind, shape, weight, activation, reason, before, after)


def _packed_nbytes(shape: tuple[int, ...], config: Method) -> int:
    N, K = matrix_shape(shape)
    P = blocks(type(config).__name__, config.granularity, shape)
    group_size = N * K // P if P % N == 0 else K
    check_group_size(group_size, K)
    scales = math.ceil(N / 16) * 16 * (K // group_size)
    return t16_nbytes(N, K, packed_bits(config.n_levels)) + 4 * config.n_levels + 4 * scales


def _parse_rule(rule: object) -> tuple[Match, tuple[Method, Method | None] | None]:
    if not isinstance(rule, tuple) or len(rule) != 2:
        raise TypeError(f"plan: a rule must be a pair (match, target), got {rule!r}")
    match, target = rule
    _check_match(match)
    if target is None:
        return match, None
    pair = target if isinstance(target, tuple) and len(target) == 2 else (target, None)
    if not is_config(pair[0]) or not (pair[1] is None or is_config(pair[1])):
        raise TypeError(f"plan: a target must be a config, a pair (weight, activation) or None, got {target!r}")
    if getattr(pair[0], "signed", True) is None:
        replace(pair[0], signed=True)  # a weight's sign; raises what is wrong with the width
    if pair[1] is not None and pair[1].granularity != "tensor" and not hasattr(pair[1], "activation_module"):
        raise ValueError(
            f'plan: activations need granularity="tensor", got {pair[1].granularity!r} in rule {_text(match)}'
        )
    return match, pair


def _check_match(match: object) -> None:
    known = issubclass(match, nn.Module) if isinstance(match, type) else isinstance(match, str) or callable(match)
    if not known:
        raise TypeError(
            f"plan: a match must be a glob, a module class or a function (name, module) -> bool, got {match!r}"
        )


def _fits(match: Match, names: list[str], module: nn.Module) -> bool:
    if isinstance(match, str):
        return any(fnmatch.fnmatchcase(name, match) for name in names)
    if isinstance(match, type):
        return isinstance(module, match)
    return any(match(name, module) for name in names)


def _text(match: Match) -> str:
    return repr(match) if isinstance(match, str) else getattr(match, "__name__", str(match))


@contextlib.contextmanager
def naming(verb: str, name: str) -> Iterator[None]:
    """Put the verb and the layer's name in front of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{verb}: layer {name!r}: {error}") from error
