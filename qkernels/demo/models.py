"""Two small nets, with what is common to both: layers ``first``, ``second``, ``last``, no batch norm, no dropout."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from qkernels import LSQ
from qkernels.methods import Method, presets
from qkernels.planning import Match, Target

ACTIVATION = LSQ(bits=4)  # so that a row of the table differs from the next in its weights only; see ``activation``


def conv() -> nn.Sequential:
    """8 x 8 -> 32 channels of 4 x 4 -> 64 channels of 2 x 2 -> 10; strides do what pooling would do in more time."""
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(1, 32, 3, stride=2, padding=1),
            relu1=nn.ReLU(),
            second=nn.Conv2d(32, 64, 3),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            last=nn.Linear(256, 10),
        )
    )


def mlp() -> nn.Sequential:
    """64 -> 128 -> 128 -> 10."""
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            first=nn.Linear(64, 128),
            relu1=nn.ReLU(),
            second=nn.Linear(128, 128),
            relu2=nn.ReLU(),
            last=nn.Linear(128, 10),
        )
    )


MODELS: dict[str, Callable[[], nn.Sequential]] = {"conv": conv, "mlp": mlp}


def config(method: str, bits: int) -> Method:
    """The method (one of ``presets``) at this width."""
    cls, options = presets()[method]
    return cls(bits=bits, **options)


def activation(weight: Method) -> Method:
    """For layers' inputs: ``ACTIVATION``, or the weight's method as wide, where that has activations of its own."""
    return replace(weight, bits=ACTIVATION.bits) if hasattr(weight, "activation_module") else ACTIVATION


def rules(weight: Method) -> list[tuple[Match, Target]]:
    """Every layer's weight is quantized, and every layer's input but the pixels, which have 17 levels by themselves."""
    return [("first", weight), ("*", (weight, activation(weight)))]
