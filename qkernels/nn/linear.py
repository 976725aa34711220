"""Layers that train quantized: the torch layer with a weight quantizer, and one for its input if asked for."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..methods import Method
from ..pack import check_group_size, matrix_shape
from .quantizer import make_activation_quantizer, make_quantizer


class QuantLinear(nn.Linear):
    """``F.linear(activation_quantizer(x), weight_quantizer(weight), bias)``; keys ``weight`` and ``bias`` unchanged.

    Shares weight, bias and hooks with ``layer``, and starts the weight quantizer from the weight. An activation
    quantizer starts from the first batch it sees, or from ``qk.calibrate``.

    Args:
        layer: an ``nn.Linear`` with its data on a device.
        weight: the config of the weight's method, e.g. ``qk.LSQ(bits=4, granularity="row")``.
        activation: the config for the layer's input, granularity "tensor"; None leaves it as it is.

    Raises:
        TypeError: another layer (a subclass may use its weight in its own way); not a config.
        ValueError: a weight on the meta device, sharded, not finite or not a parameter; a group size that does not
            divide K, or that a packed weight cannot have.
    """

    def __init__(self, layer: nn.Linear, *, weight: Method, activation: Method | None = None) -> None:
        adopt(self, layer, nn.Linear, weight, activation)

    @classmethod
    def from_float(cls, layer: nn.Linear, *, weight: Method, activation: Method | None = None) -> "QuantLinear":
        """The quantized form of ``layer``; see the class."""
        return cls(layer, weight=weight, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_quantizer is not None:
            x = self.activation_quantizer(x)
        return F.linear(x, self.weight_quantizer(self.weight), self.bias)


class QuantConv2d(nn.Conv2d):
    """``nn.Conv2d`` on ``activation_quantizer(x)`` and ``weight_quantizer(weight)``; see ``QuantLinear``.

    Rows are output channels. With a padding_mode other than "zeros" the padding is made of quantized values.
    """

    def __init__(self, layer: nn.Conv2d, *, weight: Method, activation: Method | None = None) -> None:
        adopt(self, layer, nn.Conv2d, weight, activation)

    @classmethod
    def from_float(cls, layer: nn.Conv2d, *, weight: Method, activation: Method | None = None) -> "QuantConv2d":
        """The quantized form of ``layer``; see the class."""
        return cls(layer, weight=weight, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        if self.activation_quantizer is not None:
            x = self.activation_quantizer(x)
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)


_PATCHED = "its forward must be its class's own, got one set on the instance (by a hook of another library): remove it"


def refusal(layer: nn.Module, kind: type[nn.Module]) -> str | None:
    """Why ``layer`` has no quantized form made from ``kind``, or None if it has one."""
    if type(layer) is not kind:
        return f"must be exactly nn.{kind.__name__}, got {type(layer).__name__}"
    if "forward" in layer.__dict__:
        return _PATCHED
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight must be a parameter (weight_norm and pruning compute it: remove them first)"
    if hasattr(weight, "full_tensor"):
        return "its weight is sharded: quantize before fully_shard"
    if weight.is_meta:
        return "its weight is on the meta device: load it first"
    if not weight.is_floating_point():
        return f"its weight must be float, got {weight.dtype}"
    return None


def adopt(self: nn.Module, layer: nn.Module, kind: type[nn.Module], weight: Method, activation: Method | None) -> None:
    """Make ``self`` the quantized form of ``layer``."""
    if type(layer) is not kind:
        raise TypeError(f"{type(self).__name__}: layer {refusal(layer, kind)}")
    if why := refusal(layer, kind):
        raise ValueError(f"{type(self).__name__}: {why}")
    take_over(self, layer)
    self.weight_quantizer = make_quantizer(weight, layer.weight)
    if isinstance(weight.granularity, int):
        check_group_size(weight.granularity, matrix_shape(layer.weight.shape)[1])
    self.activation_quantizer = None
    if activation is not None:
        self.activation_quantizer = make_activation_quantizer(activation, layer)
    self.weight_quantizer.calibrate(layer.weight)
    self.train(layer.training)


def take_over(self: nn.Module, layer: nn.Module) -> None:
    """Make a new module of everything ``layer`` is: options, hooks, mode, and the same tensors and submodules."""
    if "forward" in layer.__dict__:
        raise ValueError(_PATCHED)
    nn.Module.__init__(self)
    self.__dict__.update(layer.__dict__)
    self.__dict__.pop("_compiled_call_impl", None)  # of Module.compile(): it would go on calling the old layer
    for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        self.__dict__[name] = layer.__dict__[name].copy()
