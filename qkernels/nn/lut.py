"""Layers that run packed: codes, levels and scale as buffers in place of the weight."""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.modules.module import _has_any_global_hook

from ..methods import describe
from ..ops.function import is_inference
from ..ops.lut_linear import conv, op
from ..ops.lut_linear_int import op as lut_linear_int
from ..pack import PLANES, LutWeight
from .adaptive import AdaptiveStep
from .linear import QuantConv2d, QuantLinear, take_over
from .quantizer import Quantizer

_EXACT = ("codes", "levels", "scale")
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Lut(nn.Module):
    """What LutLinear and LutConv2d share."""

    like: ClassVar[type[nn.Module]]  # the torch layer
    trained: ClassVar[type[nn.Module]]  # the layer that trains quantized
    integers = False  # see LutLinear.use_integers

    def __init__(self, layer: nn.Module, weight: LutWeight, *, method: str = "") -> None:
        name = type(self).__name__
        if type(layer) not in (self.like, self.trained):
            raise TypeError(f"{name}: layer must be a {self.like.__name__}, got {type(layer).__name__}")
        if layer.weight.shape != weight.shape:
            raise ValueError(
                f"{name}: the packed weight must have the layer's shape {list(layer.weight.shape)}, "
                f"got {list(weight.shape)}"
            )
        take_over(self, layer)
        del self._parameters["weight"]
        self._modules.pop("weight_quantizer", None)
        if "activation_quantizer" not in self._modules:
            self.activation_quantizer = None
        for buffer in _EXACT:
            self.register_buffer(buffer, getattr(weight, buffer))
        self.bits, self.group_size, self.weight_shape = weight.bits, weight.group_size, tuple(weight.shape)
        self.method = method

    @classmethod
    def from_quant(cls, layer: QuantLinear | QuantConv2d) -> "_Lut":
        """Pack a trained layer. Its weight afterwards is the trained quantized weight, to the bit.

        Raises:
            TypeError: another kind of layer.
            ValueError: the weight is sharded or not finite, the activation quantizer is not calibrated, the packed
                weight would not be exact.
        """
        if type(layer) is not cls.trained:
            raise TypeError(f"{cls.__name__}: layer must be a {cls.trained.__name__}, got {type(layer).__name__}")
        activation = layer.activation_quantizer
        if activation is not None and not activation.calibrated:
            raise ValueError("its activation quantizer is not calibrated: run a batch, or qk.calibrate(model, *batch)")
        if why := broken(activation):
            raise ValueError(why)
        return cls(layer, pack_weight(layer), method=describe(layer.weight_quantizer.config))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """codes, levels, scale, bias. As attributes of a module they take as long as a small product."""
        if type(self) in _OWN and not is_compiling():
            buffers, parameters = self._buffers, self._parameters
            try:
                levels = buffers["levels"] if "levels" in buffers else parameters["levels"]
                scale = buffers["scale"] if "scale" in buffers else parameters["scale"]
                return buffers["codes"], levels, scale, parameters["bias"]
            except KeyError:  # they are elsewhere: a replica
                pass
        return self.codes, self.levels, self.scale, self.bias

    @property
    def weight_lut(self) -> LutWeight:
        """The packed weight; shares memory with the layer."""
        return LutWeight(self.codes, self.levels, self.scale, self.bits, self.group_size, self.weight_shape)

    def train_table(self, *, levels: bool = True, scale: bool = True) -> "_Lut":
        """Let the levels, the scales or both train, with the codes as they are; in place, returns the layer.

        What trains is a copy, as an ``nn.Parameter`` under its old name, so that state dicts, ``save_packed`` and
        ``weight_lut`` go on as before; what does not is a buffer (again). Make the optimizer afterwards:
        ``qk.param_groups`` puts them with the quantizers. The scales of padded rows stay 0.
        """
        for name, trains in (("levels", levels), ("scale", scale)):
            value = getattr(self, name)
            if trains and isinstance(value, nn.Parameter):
                value.requires_grad_()
            elif trains != isinstance(value, nn.Parameter):
                delattr(self, name)
                if trains:
                    self.register_parameter(name, nn.Parameter(value.detach().clone()))
                else:
                    self.register_buffer(name, value.detach())
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Lut":
        before = {name: (getattr(self, name).detach(), getattr(self, name).grad) for name in _EXACT}
        before = {name: (old, None if grad is None else grad.detach()) for name, (old, grad) in before.items()}
        super()._apply(fn, recurse)
        for name, (old, grad) in before.items():
            new = getattr(self, name)
            if new.dtype != old.dtype:
                new.grad = None
                new.data = old.to(new.device)
                new.grad = None if grad is None else grad.to(new.device)
        return self

    def extra_repr(self) -> str:
        parts = [self.like.extra_repr(self), self.method, f"{self.weight_lut.bits_per_weight:.2f} bits/weight"]
        if self.integers:
            parts.append("integers")
        if trained := [name for name in ("levels", "scale") if name in self._parameters]:
            parts.append(f"trains {' and '.join(trained)}")
        return ", ".join(part for part in parts if part)


def _is_watched(module: nn.Module) -> bool:
    """Whether a hook would run at a call of the module."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or _has_any_global_hook())


class LutLinear(_Lut):
    """``lut_linear(activation_quantizer(x), weight_lut, bias)``: a linear layer that runs packed.

    ``codes``, ``levels`` and ``scale`` move with ``.to(device)`` and keep their dtypes whatever ``.half()``,
    ``.bfloat16()`` or ``.to(dtype)`` ask for: they are the trained grid, and rounding them would change every weight.
    bias and activation quantizer follow.

    Args:
        layer: the float or quantized layer whose place this one takes: options, bias, hooks, activation quantizer.
        weight: its packed weight.
        method: what the weight was quantized with, for people to read.

    Raises:
        TypeError: another kind of layer.
        ValueError: the weight's shape is not the layer's.
    """

    like, trained = nn.Linear, QuantLinear

    def use_integers(self, on: bool = True) -> "LutLinear":
        """Multiply the integers that the activation quantizer rounds to, from now on; in place, returns the layer.

        On a CPU, for float32 activations, without gradients (under ``torch.no_grad()``: a bias that trains asks for
        them), autocast or a graph, the quantizer and the product are then one call of ``lut_linear_int``, whose sums of
        up to 4096 columns of a group are exact. Elsewhere, where ``lut_linear`` is faster (fewer than two million
        products in all, of one row with AVX-512 VNNI sixteen million; without VNNI, POST or 8 bits: on AVX-512 for any
        number of rows, on AVX2 for more than 8), where the quantizer has hooks, and once the levels are no longer for
        it, the layer goes on as before, with sums that may differ in their last bits.

        Raises:
            ValueError: the activation quantizer is not LSQ's, DAQ's or ASQ's, or its integers need 9 bits (DAQ's of 8
                bits, signed, with bounds of their own); the weight is not on a CPU, or its levels are not for
                ``lut_linear_int``.
        """
        if on and (why := self.refuses_integers()):
            raise ValueError(f"LutLinear.use_integers: {why}")
        self.integers = on
        return self

    def refuses_integers(self) -> str | None:
        """Why ``use_integers`` would refuse the layer, or None."""
        if why := self._refuses(self.activation_quantizer):
            return why
        try:
            lut_linear_int.split(self.levels)
        except ValueError as error:
            return str(error)
        return None

    @staticmethod
    def _refuses(quantizer: nn.Module | None) -> str | None:
        if type(quantizer) not in (Quantizer, AdaptiveStep) or not hasattr(quantizer.config, "integer_bits"):
            what = None if quantizer is None else type(getattr(quantizer, "config", quantizer)).__name__
            return f"the activation quantizer must be LSQ's, DAQ's or ASQ's, got {what}"
        if (bits := quantizer.config.integer_bits) > 8:
            return f"the integers of the activation quantizer must have at most 8 bits, got {bits}"
        return None

    def _in_integers(self, x: Tensor) -> Tensor | None:
        """The layer's output by ``lut_linear_int``, or None where that has no place."""
        # a graph would be for this size alone
        if is_compiling() or x.numel() * self.out_features < lut_linear_int.FEW_PRODUCTS:
            return None
        quantizer, n, k, bits = self.activation_quantizer, self.out_features, self.in_features, self.bits
        codes, levels, scale, bias = self._tensors()
        if not is_inference(*(t for t in (levels, scale, bias) if t is not None)) or torch.is_autocast_enabled("cpu"):
            return None
        if _is_watched(quantizer) or x.layout != torch.strided or x.dim() == 0 or x.shape[-1] != k:
            return None
        try:
            parts = lut_linear_int.split(levels)
        except ValueError:
            return None
        if self._refuses(quantizer) or not lut_linear_int.pays(x, n, parts, bits):
            return None
        if (bias is not None and bias.shape != (n,)) or (grid := quantizer.integer_grid(x)) is None:
            return None
        return lut_linear_int.linear(
            x, grid, codes, levels, parts, scale, bias, weight_bits=bits, group_size=self.group_size, n=n, k=k
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_quantizer is not None:
            if self.integers and (y := self._in_integers(x)) is not None:
                return y
            x = self.activation_quantizer(x)
        return op.linear(
            x, *self._tensors(), bits=self.bits, group_size=self.group_size, n=self.out_features, k=self.in_features
        )


class LutConv2d(_Lut):
    """``lut_conv2d(activation_quantizer(x), weight_lut, bias, ...)`` with the options of its ``nn.Conv2d``.

    See ``LutLinear``.
    """

    like, trained = nn.Conv2d, QuantConv2d

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_quantizer is not None:
            x = self.activation_quantizer(x)
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), 0
        return conv.conv2d(
            x, *self._tensors(), self.stride, padding, self.dilation, self.groups,
            bits=self.bits, group_size=self.group_size, shape=self.weight_shape,
        )  # fmt: skip


def broken(activation: nn.Module | None) -> str | None:
    """Why an activation quantizer cannot be used for inference, or None."""
    for name, p in [] if activation is None else activation.named_parameters():
        if not p.isfinite().all():
            return f"its activation quantizer's {name} must be finite, got {p[~p.isfinite()][0].item()}"
    return None


def packed_bits(n_levels: int) -> int:
    """The narrowest packed width that holds ``n_levels`` levels (at most 256)."""
    return min(bits for bits in PLANES if 1 << bits >= n_levels)


@torch.no_grad()
def pack_weight(layer: QuantLinear | QuantConv2d) -> LutWeight:
    """The packed weight of a trained layer, checked to the bit against what the layer computes with in eval mode.

    Raises:
        ValueError: the weight is sharded or not finite; the packed weight would not be exact.
    """
    weight = layer.weight
    if hasattr(weight, "full_tensor"):
        raise ValueError("its weight is sharded: gather the full state dict into an unsharded model first")
    if bad := int((~weight.isfinite()).sum()):
        raise ValueError(f"its weight must be finite, got {bad} values that are not")
    quantizer = layer.weight_quantizer
    hardened = quantizer.harden(weight)
    bits = packed_bits(hardened.levels.numel())
    packed = LutWeight.pack(hardened.codes, hardened.levels, hardened.scale, bits=bits)
    mode = quantizer.training
    try:  # a quantizer that draws while it trains is fixed in eval mode, and that is what is packed
        trained = quantizer.eval()(weight).contiguous()
    finally:
        quantizer.train(mode)
    integer = _INTEGERS[weight.element_size()]
    wrong = int((packed.dequantize(weight.dtype).view(integer) != trained.view(integer)).sum())
    if wrong:
        raise ValueError(f"the packed weight must equal the trained quantized weight, got {wrong} values that differ")
    return packed


# Whose attributes are what is registered; those of other classes, as of parametrized layers, may not be.
_OWN = (LutLinear, LutConv2d)
