"""Whole models: prepare for training, calibrate, convert to packed layers."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .methods import describe
from .nn.lut import LutConv2d, LutLinear
from .nn.quantizer import quantizers, replace_modules
from .pack import LutWeight
from .planning import LUT, QUANT, Match, Plan, Target, naming, plan
from .tables import size, table


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
        if layer is None or type(layer) not in QUANT or tuple(layer.weight.shape) != row.shape:
            raise ValueError(
                f"prepare_: the plan must be of this model, got layer {row.name!r} ({row.kind} {list(row.shape)})"
            )
        with naming("prepare_", row.name):
            if layer is model:
                raise ValueError(
                    "the model itself cannot be replaced in place; use qk.nn.Quant*.from_float(model, ...)"
                )
            new[id(layer)] = QUANT[type(layer)](layer, weight=row.weight, activation=row.activation)
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
    """Groups for any optimizer: the model's parameters; without weight decay the quantizers', and DropBits' gates.

    Levels and scales of packed layers that train (``LutLinear.train_table``) are with the quantizers'.

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
    packed = [m for m in model.modules() if isinstance(m, (LutLinear, LutConv2d))]
    of |= {id(p): "quantizer" for m in packed for p in (m.levels, m.scale)}
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
        sizes = [f"{self.bits_per_weight:.2f}", size(self.bytes_before), size(self.bytes_after)]
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
            table(head, [layer.cells() for layer in self.layers], right=set(range(2, 8)))
            + f"\n{len(self.layers)} layers packed, {self.bits_per_weight:.2f} bits/weight, "
            f"{size(self.bytes_before)} -> {size(self.bytes_after)} bytes"
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
    layers = {name: m for name, m in model.named_modules() if isinstance(m, tuple(LUT))}
    if not layers:
        packed = sum(isinstance(m, (LutLinear, LutConv2d)) for m in model.modules())
        why = f"it has {packed} packed layers: converted already" if packed else "prepare_ it first"
        raise ValueError(f"convert_: the model must have a quantized layer, got none ({why})")
    new, rows = {}, []
    for name, layer in layers.items():
        with naming("convert_", name):
            if layer is model:
                raise ValueError("the model itself cannot be replaced in place; use qk.nn.Lut*.from_quant(model)")
            new[id(layer)] = LUT[type(layer)].from_quant(layer)
            rows.append(_converted(name, layer, new[id(layer)].weight_lut))
    replace_modules(model, new)
    return Report(tuple(rows))


def use_integers_(model: nn.Module, on: bool = True) -> list[str]:
    """Let every packed linear layer that can multiply the integers of its activations, or (on=False) none; in place.

    Those whose activation quantizer is LSQ's, ASQ's or, with integers of up to 8 bits, DAQ's, and whose weight
    ``lut_linear_int`` takes; see ``nn.LutLinear.use_integers``. It is not stored in files: call it after
    ``load_packed`` too.

    Returns:
        The names of the layers that do from now on.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LutLinear)}
    for layer in layers.values():
        layer.use_integers(on and layer.refuses_integers() is None)
    return [name for name, layer in layers.items() if layer.integers]


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
