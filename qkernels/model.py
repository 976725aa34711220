"""Whole models: plan what to quantize, prepare for training, calibrate, convert to packed layers."""

import contextlib
import fnmatch
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .methods import Method, describe, is_config
from .nn.linear import QuantConv2d, QuantLinear, refusal
from .nn.lut import LutConv2d, LutLinear, packed_bits
from .nn.quantizer import quantizers, replace_modules
from .ops.calibration import blocks
from .pack import LutWeight, check_group_size, matrix_shape, t16_nbytes

Match = str | type[nn.Module] | Callable[[str, nn.Module], bool]
Target = Method | tuple[Method, Method | None] | None

_QUANT: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d}
_LUT: dict[type[nn.Module], type[nn.Module]] = {QuantLinear: LutLinear, QuantConv2d: LutConv2d}


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
        after = "-" if self.weight is None else _size(self.bytes_after)
        shape = " x ".join(map(str, self.shape))
        name, before = self.name or "(the model)", _size(self.bytes_before)
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
        lines = [_table(head, [layer.cells() for layer in self.layers], right={4, 5, 6})]
        count = f"{len(self.quantized)} of {len(self.layers)} layers quantized"
        lines.append(f"{count}, {_size(before)} -> {_size(after)} bytes")
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


def prepare_(
    model: nn.Module, plan_or_rules: Plan | Sequence[tuple[Match, Target]], *, skip: Sequence[Match] = ()
) -> Plan:
    """Put quantized layers in the model, in place, as the plan says; returns the plan.

    Weights, biases and their state-dict keys stay; weight quantizers start from the weights. So load float weights
    first, and make the optimizer afterwards (``param_groups``). On an error the model is as it was.

    Args:
        model: the float model, not yet wrapped for distributed training.
        plan_or_rules: a plan of this model, or rules for one.
        skip: with rules, as in ``plan``.

    Raises:
        ValueError: nothing to quantize; a plan of another model; the model itself is the layer; a model already wrapped
            by DistributedDataParallel or fully_shard; a weight that cannot be quantized (names the layer).
    """
    _check_unwrapped("prepare_", model)
    chosen = plan_or_rules
    if not isinstance(chosen, Plan):
        chosen = plan(model, chosen, skip=skip)
    elif skip:
        raise ValueError("prepare_: skip goes with rules; give it to plan instead")
    if not chosen.quantized:
        raise ValueError(f"prepare_: the plan must quantize at least one layer, got none:\n{chosen}")
    modules = dict(model.named_modules())
    new = {}
    for row in chosen.quantized:
        layer = modules.get(row.name)
        if layer is None or type(layer) not in _QUANT or tuple(layer.weight.shape) != row.shape:
            raise ValueError(
                f"prepare_: the plan must be of this model, got layer {row.name!r} ({row.kind} {list(row.shape)})"
            )
        with _naming("prepare_", row.name):
            if layer is model:
                raise ValueError(
                    "the model itself cannot be replaced in place; use qk.nn.Quant*.from_float(model, ...)"
                )
            new[id(layer)] = _QUANT[type(layer)](layer, weight=row.weight, activation=row.activation)
    replace_modules(model, new)
    return chosen


@torch.no_grad()
def calibrate(model: nn.Module, *batch: object) -> list[str]:
    """Run one batch so that every activation quantizer starts from it; returns the names of those that did.

    Runs ``model(*batch)`` in eval mode (batch norm statistics and dropout are left alone), then restores each module's
    mode. A batch that is one mapping is given by keyword. Quantizers that are calibrated already stay as they are.
    In a distributed run every rank calls it, before the model is wrapped: the parameters are the mean over ranks.

    Raises:
        ValueError: a quantizer is not reached by the batch (or gets nothing but zeros): names it; another batch can
            follow. A model wrapped for distributed training.
    """
    _check_unwrapped("calibrate", model)
    new = {name: q for name, q in quantizers(model) if not q.calibrated}
    modes = {module: module.training for module in model.modules()}
    hooks = [q.register_forward_pre_hook(_calibrate_first) for q in new.values()]
    try:
        model.eval()
        if len(batch) == 1 and isinstance(batch[0], Mapping):
            model(**batch[0])
        else:
            model(*batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if left := [name for name, q in new.items() if not q.calibrated]:
        raise ValueError(
            f"calibrate: the batch must reach every quantizer with other values than 0, not so {', '.join(left)}"
        )
    return list(new)


def param_groups(
    model: nn.Module,
    lr: float,
    *,
    quantizer_lr: float | None = None,
    gate_lr: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, object]]:
    """Groups for any optimizer: the model's parameters; the quantizers' and DropBits' gates, without weight decay.

    Args:
        lr: learning rate of the model's parameters.
        quantizer_lr: of the quantizers' parameters; None is ``lr``.
        gate_lr: of the gates' logits, which are not in units of the weights; None is ``quantizer_lr``.
        weight_decay: of the model's parameters. A quantizer has none: decay would shrink its grid.

    Returns:
        One to three dicts, in this order; parameters that need no gradient are left out.
    """
    if quantizer_lr is None:
        quantizer_lr = lr
    if gate_lr is None:
        gate_lr = quantizer_lr
    of = {id(p): "quantizer" for _, q in quantizers(model) for p in q.parameters()}
    of |= {id(q.logits): "gate" for _, q in quantizers(model) if hasattr(q, "penalty")}
    groups = {
        "model": {"params": [], "lr": lr, "weight_decay": weight_decay},
        "quantizer": {"params": [], "lr": quantizer_lr, "weight_decay": 0.0},
        "gate": {"params": [], "lr": gate_lr, "weight_decay": 0.0},
    }
    for p in model.parameters():
        if p.requires_grad:
            groups[of.get(id(p), "model")]["params"].append(p)
    return [group for group in groups.values() if group["params"]]


def penalty(model: nn.Module) -> Tensor:
    """What the bit-widths that a model is learning cost: add it to the task loss.

    The sum over the quantizers with trained gates (``qkernels.CPQ(dropbits=..., penalty=...)``) of penalty times the
    expected number of kept levels (``qkernels.bit_penalty``); a scalar, 0 if there are none.
    """
    costs = [q.penalty() for _, q in quantizers(model) if hasattr(q, "penalty")]
    return torch.stack(costs).sum() if costs else torch.zeros(())


@dataclass(frozen=True)
class ConvertedLayer:
    """One row of a report.

    method: as trained. bits: as trained, or as learned; stored_bits: as packed. max_error: largest |packed - float
    weight|. sqnr_db: 10 log10(sum w**2 / sum (packed - w)**2), inf without error. exact: the packed weight equals the
    trained quantized weight to the bit (else ``convert_`` had raised).
    """

    name: str
    method: str
    bits: int
    stored_bits: int
    shape: tuple[int, ...]
    bits_per_weight: float
    bytes_before: int
    bytes_after: int
    max_error: float
    sqnr_db: float
    exact: bool = True

    def cells(self) -> list[str]:
        bits = str(self.bits) if self.bits == self.stored_bits else f"{self.bits} in {self.stored_bits}"
        sizes = [f"{self.bits_per_weight:.2f}", _size(self.bytes_before), _size(self.bytes_after)]
        errors = [f"{self.max_error:.3g}", f"{self.sqnr_db:.1f}", "yes" if self.exact else "no"]
        return [self.name, self.method, bits, *sizes, *errors]


@dataclass(frozen=True, repr=False)
class Report:
    """What ``convert_`` did; ``print(report)`` is the table. Totals are over the packed layers."""

    layers: tuple[ConvertedLayer, ...]

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes_after / sum(math.prod(layer.shape) for layer in self.layers)

    @property
    def max_error(self) -> float:
        return max(layer.max_error for layer in self.layers)

    @property
    def exact(self) -> bool:
        return all(layer.exact for layer in self.layers)

    def __str__(self) -> str:
        head = ["layer", "method", "bits", "bits/weight", "bytes before", "after", "max error", "SQNR dB", "exact"]
        return (
            _table(head, [layer.cells() for layer in self.layers], right=set(range(2, 8)))
            + f"\n{len(self.layers)} layers packed, {self.bits_per_weight:.2f} bits/weight, "
            f"{_size(self.bytes_before)} -> {_size(self.bytes_after)} bytes"
        )

    __repr__ = __str__


def convert_(model: nn.Module) -> Report:
    """Replace every quantized layer by its packed form, in place; returns the report.

    Each packed weight is compared with what the layer computed with, and must be equal to the bit. Widths without a
    packed form (5 to 7 bits, POST's "release" grid) are stored in the next one. On an error the model is as it was.

    Raises:
        ValueError: no quantized layer; the model itself is the layer; a layer that cannot be packed exactly, an
            activation quantizer that is not calibrated, a sharded or wrapped model (names the layer).
    """
    _check_unwrapped("convert_", model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, tuple(_LUT))}
    if not layers:
        packed = sum(isinstance(m, (LutLinear, LutConv2d)) for m in model.modules())
        why = f"it has {packed} packed layers: converted already" if packed else "prepare_ it first"
        raise ValueError(f"convert_: the model must have a quantized layer, got none ({why})")
    new, rows = {}, []
    for name, layer in layers.items():
        with _naming("convert_", name):
            if layer is model:
                raise ValueError("the model itself cannot be replaced in place; use qk.nn.Lut*.from_quant(model)")
            new[id(layer)] = _LUT[type(layer)].from_quant(layer)
            rows.append(_converted(name, layer, new[id(layer)].weight_lut))
    replace_modules(model, new)
    return Report(tuple(rows))


@torch.no_grad()
def _converted(name: str, layer: nn.Module, packed: LutWeight) -> ConvertedLayer:
    weight, config = layer.weight, layer.weight_quantizer.config
    error = packed.dequantize() - weight.float()
    signal, noise = weight.double().square().sum().item(), error.double().square().sum().item()
    ratio = signal / noise if noise else math.inf
    return ConvertedLayer(
        name=name,
        method=describe(config),
        bits=getattr(layer.weight_quantizer, "effective_bits", config.bits),
        stored_bits=packed.bits,
        shape=tuple(weight.shape),
        bits_per_weight=packed.bits_per_weight,
        bytes_before=weight.nbytes,
        bytes_after=packed.nbytes,
        max_error=error.abs().max().item(),
        sqnr_db=10 * math.log10(ratio) if ratio else -math.inf,
    )


def _layers(model: nn.Module) -> Iterator[tuple[list[str], nn.Module]]:
    """(its names, module) of each module that is a packed layer or owns a parameter of 2 or more dimensions."""
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
        modules[id(module)] = module
    for key, module in modules.items():
        own = any(p is not None and p.dim() >= 2 for p in module._parameters.values())
        if own or isinstance(module, (*_QUANT, LutLinear, LutConv2d)):
            yield names[key], module


def _why_not(module: nn.Module, fast_path: bool) -> str | None:
    """Why no rule can quantize this module, or None."""
    if isinstance(module, tuple(_LUT)):
        return "quantized already"
    if isinstance(module, (LutLinear, LutConv2d)):
        return "packed already"
    for kind in _QUANT:
        if isinstance(module, kind):
            if fast_path:
                return "nn.TransformerEncoderLayer's fast path uses its weight without calling it"
            return refusal(module, kind)
    return f"{type(module).__name__} has no quantized form ({' and '.join(k.__name__ for k in _QUANT)} have)"


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
        with _naming("plan", name):
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


def _check_unwrapped(verb: str, model: nn.Module) -> None:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    wrappers = (nn.parallel.DistributedDataParallel,)
    if fsdp is not None:
        wrappers += (fsdp.FSDPModule, fsdp.FullyShardedDataParallel)
    for name, module in model.named_modules():
        if isinstance(module, wrappers):
            raise ValueError(
                f"{verb}: the model must not be wrapped for distributed training, "
                f"got {type(module).__name__} at {name!r}"
            )


def _calibrate_first(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
    if not quantizer.calibrated and args[0].any():
        quantizer.calibrate(args[0])


@contextlib.contextmanager
def _naming(verb: str, name: str) -> Iterator[None]:
    """Put the verb and the layer's name in front of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{verb}: layer {name!r}: {error}") from error


def _size(count: int) -> str:
    return f"{count:,}"


def _table(head: list[str], rows: list[list[str]], right: set[int]) -> str:
    """Columns as wide as their widest cell; those in ``right`` are aligned right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, ["-" * width for width in widths], *rows]:
        cells = [row[i].rjust(width) if i in right else row[i].ljust(width) for i, width in enumerate(widths)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
