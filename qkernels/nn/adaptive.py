"""Activation quantizer whose step adapts to each sample: the adapter of ASQ (arXiv:2504.17263)."""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.asq import op
from ..ops.asq.config import ASQ
from ..ops.asq.reference import step_of
from ..ops.function import is_inference, no_autocast
from ..ops.grids import IntegerGrid
from ..ops.lsq import op as lsq
from .quantizer import Quantizer, replace_modules

_RATIO, _LEAST_CHANNELS = 4, 8  # of the release
_LEAST_BETA = 1e-8


class AdaptiveStep(Quantizer):
    """``qk.asq(x, step, beta)`` with beta = adapter(mean of each channel of the sample).

        h = W2 relu(W1 a + b1) + b2, W1 [C // 4, C], W2 [1, C // 4]      C < 8:  h = W1 a + b1
        beta = max(relu(h), 1e-8), or, with ``config.bound`` r, exp(clamp(h - 1, -r, r))

    a [C] is the float32 mean over the positions after ``dim``: of a convolution's input [N, C, H, W] (dim -3) one a
    sample; of a linear layer's [..., C] (dim -1) each row, a sample or token, is its own. The last weight starts normal
    with deviation 0.01 and the last bias at 1, so that beta starts near 1 and training like LSQ's. All in float32, also
    under autocast.

    Args:
        config: of the method.
        channels: C.
        dim: where they are, -1 or -3.
        dtype, device: of the parameters.

    Raises:
        ValueError: channels or dim not as above; at a call, x without C channels there.
    """

    def __init__(
        self,
        config: ASQ,
        channels: int,
        dim: int = -1,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if channels < 1:
            raise ValueError(f"AdaptiveStep: channels must be at least 1, got {channels}")
        if dim not in (-1, -3):
            raise ValueError(f"AdaptiveStep: dim must be -1 or -3, got {dim}")
        super().__init__(config, None, dtype=dtype, device=device)
        self.channels, self.dim = channels, dim
        last = channels // _RATIO if channels >= _LEAST_CHANNELS else channels
        layers = [nn.Linear(channels, last, dtype=dtype, device=device), nn.ReLU()] if last < channels else []
        layers.append(nn.Linear(last, 1, dtype=dtype, device=device))
        self.adapter = nn.Sequential(*layers)
        nn.init.normal_(layers[-1].weight, std=0.01)
        nn.init.ones_(layers[-1].bias)

    def forward(self, x: Tensor) -> Tensor:
        """x quantized. A quantizer that has seen no data starts from this x (eagerly, in one process)."""
        if not x.numel() or not self.calibrated and not self._start(x):
            return x
        config, (step,), beta = self.config.step_config(), self.values(), self.beta(x)
        if x.is_contiguous() and is_inference(x, step, beta):
            return config.fixed(step_of(step, beta, None))(x)
        samples = x.shape[0] if x.dim() > 1 else 1
        kappa = config.step_grad_scale(x.numel() // max(samples, 1)) if config.grad_scale else None
        return op.asq(x, step, beta, bits=config.bits, signed=config.signed, grad_scale=kappa)

    def integer_grid(self, x: Tensor) -> IntegerGrid | None:
        if (
            not self.calibrated
            or self.dim != -1
            or not x.numel()
            or x.dtype != torch.float32
            or not self._only_forward(x)
        ):
            return None
        (step,), beta = self.values(), self.beta(x)
        if not is_inference(beta):
            return None
        return lsq.integer_grid(step_of(step, beta, None), bits=self.config.bits, signed=bool(self.config.signed))

    def beta(self, x: Tensor) -> Tensor:
        """The factor of each sample or token of x: float32, 1-D."""
        if x.dim() < -self.dim or x.shape[self.dim] != self.channels:
            raise ValueError(
                f"AdaptiveStep: x must have {self.channels} channels in dimension {self.dim}, got {list(x.shape)}"
            )
        a = x.detach() if self.config.detach_adapter_input else x
        if self.dim == -3:  # a sum's gradient is a view, a mean's a tensor like x
            a = a.sum((-2, -1), dtype=torch.float32) * (1 / max(x.shape[-1] * x.shape[-2], 1))
        with no_autocast(x):
            h = a.reshape(-1, self.channels).float()
            for layer in self.adapter:
                linear = isinstance(layer, nn.Linear)
                h = F.linear(h, layer.weight.float(), layer.bias.float()) if linear else layer(h)
        h = h.reshape(-1)
        if (r := self.config.bound) is not None:
            return (h - 1).clamp(-r, r).exp()
        return h.relu().clamp_min(_LEAST_BETA)

    def frozen(self, beta: float) -> Quantizer:
        """The plain LSQ quantizer with the step ``step * beta``."""
        config = self.config.step_config()
        q = Quantizer(config, None, dtype=self.step.dtype, device=self.step.device)
        with torch.no_grad():
            q.step.copy_(self.values()[0] * beta)
            q.calibration.copy_(self.calibration)
        q.calibrated = self.calibrated
        q._free_sign = self._free_sign
        return q.train(self.training)


@torch.no_grad()
def freeze_steps_(model: nn.Module, batches: Iterable[object]) -> dict[str, float]:
    """Replace every ``AdaptiveStep`` in the model by a plain LSQ step, step * the mean beta over the batches; in place.

    For engines that cannot express a step per sample. Runs ``model(batch)`` in eval mode for each batch (a mapping by
    keyword) and restores each module's mode; the mean is over samples or tokens. Afterwards the model has no adapter.

    Returns:
        name -> mean beta.

    Raises:
        ValueError: a model without an adaptive step; one that is not calibrated, or not reached by the batches.
    """
    found = {name: m for name, m in model.named_modules() if isinstance(m, AdaptiveStep)}
    if not found:
        raise ValueError("freeze_steps_: the model must have an AdaptiveStep, got none")
    if new := [name for name, q in found.items() if not q.calibrated]:
        raise ValueError(f"freeze_steps_: every step must be calibrated, not so {', '.join(new)}")
    sums = {q: [0.0, 0] for q in found.values()}

    def note(q: AdaptiveStep, inputs: tuple[Tensor, ...]) -> None:
        beta = q.beta(inputs[0]).double()
        sums[q][0] += beta.sum().item()
        sums[q][1] += beta.numel()

    modes = {module: module.training for module in model.modules()}
    hooks = [q.register_forward_pre_hook(note) for q in found.values()]
    try:
        model.eval()
        for batch in batches:
            model(**batch) if isinstance(batch, Mapping) else model(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    if left := [name for name, q in found.items() if not sums[q][1]]:
        raise ValueError(f"freeze_steps_: the batches must reach every step, not so {', '.join(left)}")
    means = {name: sums[q][0] / sums[q][1] for name, q in found.items()}
    replace_modules(model, {id(q): q.frozen(means[name]) for name, q in found.items()})
    return means
