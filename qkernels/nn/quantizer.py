"""The module that holds a quantizer's parameters: one class for every method, one call and no maths."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..backends import FLOATS
from ..methods import Method, describe, is_config
from ..ops import calibration
from ..ops.function import is_inference
from ..ops.grids import Hardened, IntegerGrid

_TINY = 2.0**-126  # the smallest normal float32: a step of 1e-30 or more is not changed by adding it
_NEW, _UNSIGNED, _SIGNED = 0, 1, 2  # values of the buffer ``calibration``


class Quantizer(nn.Module):
    """``config.quantize(x, *parameters)`` with the parameters as 1-D ``nn.Parameter`` of P values.

    A module of its own with its own forward, so that ``fully_shard`` can give it a group of its own.

    Parameters that must be positive reach the op as ``magnitude(p)``: |p|, which is p to the bit as long as p is
    positive. An optimizer step that carries p across zero is then a reflection: the grid stays of its size and the
    gradient keeps pointing to the better |p|. (A clamp would leave a grid of size 0 there, which passes no gradient to
    x; Adam moves a step by about lr whatever its size, so that small steps do cross.)

    The buffer ``calibration`` (uint8 [1]: 0 new, 1 unsigned grid, 2 signed grid) carries the state of the calibration
    and the chosen sign through ``state_dict``.

    Args:
        config: a method's config, e.g. ``qk.LSQ(bits=4)``.
        shape: of the weight [N, ...]; None for activations, which have one block.
        dtype, device: of the parameters.

    Raises:
        ValueError: the group size does not divide K; activations with a granularity other than "tensor".
    """

    def __init__(
        self,
        config: Method,
        shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        name = type(config).__name__
        if shape is None and config.granularity != "tensor" and not hasattr(config, "activation_module"):
            raise ValueError(f'{name}: activations need granularity="tensor", got {config.granularity!r}')
        if shape is not None and getattr(config, "signed", True) is None:
            config = dataclasses.replace(config, signed=True)
        self.config = config
        self.calibrated = False
        self._fixed_for: tuple[object, tuple] = (None, ())  # (key, what _by_values gives)
        self._activation = shape is None
        self._free_sign = getattr(config, "signed", True) is None
        P = 1 if shape is None else calibration.blocks(name, config.granularity, shape)
        for parameter in self.method(config).parameters:
            self.register_parameter(parameter, nn.Parameter(torch.ones(P, dtype=dtype, device=device)))
        self.register_buffer("calibration", torch.zeros(1, dtype=torch.uint8, device=device))

    def method(self, config: Method) -> Method:
        """What names the parameters and starts them: the config, unless a subclass has others for it."""
        return config

    def forward(self, x: Tensor) -> Tensor:
        """x quantized. A quantizer that has seen no data starts from this x (eagerly, in one process)."""
        if not self.calibrated and not self._start(x):
            return x
        if (fixed := self._fixed(x)) is not None:
            return fixed(x)
        samples = x.shape[0] if self._activation and x.dim() > 1 else 1
        return self.config.quantize(x, *self.values(), samples=samples)

    def _fixed(self, x: Tensor) -> Callable[[Tensor], Tensor] | None:
        """``config.fixed`` for the parameters as they are, or None where it has no place.

        Made anew when a value changes, by whatever way; so on a CPU only, where to read one is not to wait for it.
        """
        if not hasattr(self.config, "fixed") or not self._only_forward(x) or not x.is_contiguous():
            return None
        return self._by_values()[0]

    def _only_forward(self, x: Tensor) -> bool:
        """Whether x, an activation on a CPU, has nothing to do with gradients or graphs."""
        parameters = [getattr(self, name) for name in self.method(self.config).parameters]
        if not self._activation or not is_inference(x, *parameters) or type(x) is not Tensor or x.dtype not in FLOATS:
            return False
        return x.device.type == "cpu" and all(p.device == x.device for p in parameters)

    def _by_values(self) -> tuple[Callable[[Tensor], Tensor] | None, IntegerGrid | None]:
        """``config.fixed`` and, of up to 8 bits, ``config.integer_grid``, of the parameters as they are."""
        key = (self.config, *[getattr(self, name).item() for name in self.method(self.config).parameters])
        if self._fixed_for[0] != key:
            values = [v.detach() for v in self.values()]
            has_grid = hasattr(self.config, "integer_grid") and self.config.integer_bits <= 8
            grid = self.config.integer_grid(*values) if has_grid else None
            self._fixed_for = key, (self.config.fixed(*values), grid)
        return self._fixed_for[1]

    def integer_grid(self, x: Tensor) -> IntegerGrid | None:
        """The integers of ``forward(x)``, if it has some, for a float32 x on a CPU and for inference: then
        ``lut_linear_int`` can quantize x. Else None."""
        if not hasattr(self.config, "integer_grid") or not self.calibrated or x.dtype != torch.float32:
            return None
        return self._by_values()[1] if self._only_forward(x) else None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_fixed_for": (None, ())}  # a function cannot be pickled

    def values(self) -> list[Tensor]:
        """What the op gets: each parameter as float32 [P], in the config's order."""
        method = self.method(self.config)
        return [
            magnitude(getattr(self, name)) if name in method.positive else getattr(self, name).float()
            for name in method.parameters
        ]

    @torch.no_grad()
    def harden(self, x: Tensor) -> Hardened:
        """The codes, levels and scale that ``forward(x)`` uses."""
        return self.config.harden(x, *self.values())

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Start again from x: decide the sign, if the config leaves it open, and set every parameter.

        For activations in a distributed run it is a collective call: each rank brings its x, and the parameters are the
        mean over ranks.

        Raises:
            ValueError: x is empty, has no data (meta) or values that are not finite; a parameter that is not positive
                in its dtype; parameters that are sharded.
        """
        name = type(self.config).__name__
        x = x.reshape(1) if x.dim() == 0 else x
        if x.is_meta or not x.numel():
            raise ValueError(f"{name}: the tensor to calibrate on must hold data, got {list(x.shape)} on {x.device}")
        if bad := int((~x.isfinite()).sum()):
            raise ValueError(f"{name}: the tensor to calibrate on must be finite, got {bad} values that are not")
        parameters = {key: getattr(self, key) for key in self.method(self.config).parameters}
        if any(hasattr(p, "full_tensor") for p in parameters.values()) or hasattr(self, "unshard"):
            raise ValueError(f"{name}: calibrate before fully_shard, got sharded parameters")
        config = self.config
        if self._free_sign:
            negative = _over_ranks((x < 0).any().to(torch.int32).reshape(1), mean=False)
            config = dataclasses.replace(config, signed=bool(negative))
        P = next(iter(parameters.values())).shape[0]
        method = self.method(config)
        for key, value in method.init(x, P).items():
            if self._activation:
                value = _over_ranks(value, mean=True)
            value = value.to(parameters[key].dtype)
            if key in method.positive and not ((value > 0) & value.isfinite()).all():
                bad = value[~((value > 0) & value.isfinite())][0].item()
                raise ValueError(f"{name}: {key} must be positive and finite in {value.dtype}, got {bad:g}")
            parameters[key].copy_(value)
        self.config, self.calibrated = config, True
        self.calibration.fill_(_SIGNED if getattr(config, "signed", True) else _UNSIGNED)

    def _start(self, x: Tensor) -> bool:
        """Calibrate on x. False where x is all zeros: they tell nothing, and are their own quantized value."""
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "an activation quantizer is not calibrated: run one batch without torch.compile, or "
                "qk.calibrate(model, *batch), first"
            )
        if mode := int(self.calibration):  # loaded in place, behind the back of load_state_dict
            if why := self._resume(mode):
                raise ValueError(f"{type(self.config).__name__}: {why}")
            return True
        if _distributed():  # the ranks would start from different batches, and fully_shard would drop what is set here
            raise RuntimeError(
                "an activation quantizer is not calibrated: in a distributed run, call qk.calibrate(model, *batch) on "
                "every rank before wrapping the model"
            )
        if not x.any():
            return False
        self.calibrate(x)
        return True

    def _resume(self, mode: int) -> str | None:
        """Take over the state ``mode``; returns why it does not fit, if so."""
        if mode not in (_NEW, _UNSIGNED, _SIGNED):
            return f"calibration must be 0, 1 or 2, got {mode}"
        if hasattr(self.config, "signed"):
            signed = None if mode == _NEW else mode == _SIGNED
            if self._free_sign:
                self.config = dataclasses.replace(self.config, signed=signed)
            elif mode != _NEW and signed != self.config.signed:
                return f"the grid must be signed={self.config.signed} as in its config, got signed={signed}"
        self.calibrated = mode != _NEW
        return None

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        mode = state_dict.get(f"{prefix}calibration")
        if mode is None or mode.is_meta or mode.shape != self.calibration.shape:
            return  # missing, empty or, which the call above has reported, of another shape
        if why := self._resume(int(mode)):
            error_msgs.append(f"{prefix.rstrip('.')}: {why}")

    def extra_repr(self) -> str:
        return f"{describe(self.config)}, P={next(self.parameters()).numel()}" + ("" if self.calibrated else ", new")


def magnitude(p: Tensor) -> Tensor:
    """|p| as float32, not 0 where p is 0: p itself, to the bit, where p >= 1e-30. dp = sign(p), +1 at 0."""
    return (p.float() + _TINY).abs()


def make_quantizer(config: Method, weight: Tensor, *, activation: bool = False) -> nn.Module:
    """A quantizer for this weight, or for the input of its layer; in the weight's dtype and on its device.

    The method's own module, if it brings one, else ``Quantizer``.

    Raises:
        TypeError: config is not a method's config.
        ValueError: as ``Quantizer``.
    """
    if not is_config(config):
        what = "activation" if activation else "weight"
        raise TypeError(f"{what} must be a method's config such as qk.LSQ(bits=4), got {config!r}")
    shape = None if activation else tuple(weight.shape)
    make = getattr(config, "module", None)
    return (make or (lambda s, **k: Quantizer(config, s, **k)))(shape, dtype=weight.dtype, device=weight.device)


def make_activation_quantizer(config: Method, layer: nn.Module) -> nn.Module:
    """A quantizer for the input of this ``nn.Linear`` or ``nn.Conv2d``; in its weight's dtype and on its device.

    Raises:
        TypeError, ValueError: as ``make_quantizer``.
    """
    weight = layer.weight
    if not is_config(config) or not hasattr(config, "activation_module"):
        return make_quantizer(config, weight, activation=True)
    channels, dim = (layer.in_channels, -3) if isinstance(layer, nn.Conv2d) else (layer.in_features, -1)
    return config.activation_module(channels, dim, dtype=weight.dtype, device=weight.device)


def quantizers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of every quantizer in the model, once each: what ``fully_shard`` gives groups of their own."""
    seen = set()
    for name, module in model.named_modules():
        own = isinstance(module, Quantizer) or name.rpartition(".")[2] in ("weight_quantizer", "activation_quantizer")
        if own and not any(name.startswith(f"{parent}.") for parent in seen):
            seen.add(name)
            yield name, module


def replace_modules(model: nn.Module, new: dict[int, nn.Module]) -> None:
    """Put ``new[id(old)]`` in the place of every ``old``, wherever in the model it is registered."""
    for parent in list(model.modules()):
        for key, child in parent._modules.items():
            if id(child) in new:
                parent._modules[key] = new[id(child)]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _over_ranks(values: Tensor, *, mean: bool) -> Tensor:
    """The mean, or the maximum, of values over all ranks."""
    if not _distributed():
        return values
    op = torch.distributed.ReduceOp.SUM if mean else torch.distributed.ReduceOp.MAX
    values = values.clone()
    torch.distributed.all_reduce(values, op)
    return values / torch.distributed.get_world_size() if mean else values
