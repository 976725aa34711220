"""The quantizer of a weight whose levels carry gates (DropBits): they are drawn while it trains, fixed otherwise."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..methods import Method
from ..ops.dropbits.draws import draw, spend, watch
from ..ops.dropbits.op import bit_penalty, hard_concrete
from ..ops.grids import Hardened
from ..ops.ste import clamp_pulling_back
from .quantizer import Quantizer

_START = math.log(0.9 / 0.1)  # a level starts with the chance 0.9 (before stretching) to be kept
_LOGITS = (math.log(1e-2), math.log(1e2))  # as in the code of arXiv:1712.01312


class DropBitsQuantizer(Quantizer):
    """``Quantizer`` with the gates of ``qkernels.CPQ(dropbits=...)``: one more parameter, ``logits``.

    In training mode the gates are drawn from ``logits``, once a step: the first call after a backward draws anew, and
    a call from inside a backward (activation checkpointing) gets the present gates, which it is to recompute; compiled
    or not. (So with checkpointing no other step may draw between a step's forward and its backward, as pipeline
    schedules such as 1F1B have it. Without checkpointing that is no matter.) The buffer ``draws`` (int64 [1]) is the
    seed of the present gates; it starts from the weight, so that layers differ and runs agree, goes up by one a draw,
    and is in the state dict, so that a run that is resumed draws what it would have drawn. (Where neither x nor a
    parameter here is trained, no backward tells that a step is over: each call, or compiled graph, draws, and what is
    recomputed is the last one.) In a distributed run every rank draws the same gates; where the logits are sharded,
    ``penalty``, ``effective_bits`` and ``harden`` are collective calls.

    In eval mode the gates are those without noise, and so are ``harden``, ``effective_bits`` and what is packed.
    """

    def __init__(
        self,
        config: Method,
        shape: Sequence[int],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(config, shape, dtype=dtype, device=device)
        self.logits = nn.Parameter(torch.full((self.config.n_gates,), _START, dtype=dtype, device=device))
        self.register_buffer("draws", torch.zeros(1, dtype=torch.int64, device=device))
        self.register_buffer("spent", torch.ones_like(self.draws), persistent=False)  # see ops/dropbits/draws.py

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.training or self.logits.requires_grad:
            return y
        trained = any(t.requires_grad for t in (x, *self.parameters()))
        return (watch if trained else spend)(y, self.spent)

    def values(self) -> list[Tensor]:
        return [*super().values(), self.gates()]

    def gates(self) -> Tensor:
        """[n_gates] in [0, 1], the ``keep`` of ``qkernels.cpq``: drawn in training mode."""
        if not self.training:
            return self._settled()
        return watch(hard_concrete(self._logits(), seed=draw(self.draws, self.spent)), self.spent)

    def penalty(self) -> Tensor:
        """What this layer adds to ``qkernels.penalty``, a scalar."""
        return self.config.penalty * bit_penalty(self._logits())

    @property
    def effective_bits(self) -> int:
        """The width that the kept levels need: 1 + the number of bits of the largest kept magnitude."""
        kept = self._settled().detach().nonzero()
        outermost = int(kept[-1]) + 1 if len(kept) else 0
        return 1 + (outermost if self.config.dropbits == "bitwise" else outermost.bit_length())

    @torch.no_grad()
    def harden(self, x: Tensor) -> Hardened:
        """The codes, levels and scale that ``forward(x)`` uses in eval mode."""
        return self.config.harden(x, *super().values(), self._settled())

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Start again from x, as ``Quantizer``; every gate too."""
        super().calibrate(x)
        self.logits.fill_(_START)
        bits = x.detach().float().contiguous().view(torch.int32).sum(dtype=torch.int64)
        self.draws.copy_(bits.abs())
        self.spent.fill_(1)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}draws" in state_dict:
            if self.spent.device != self.draws.device:  # it was on the meta device, and took the tensors of the state
                self.spent = torch.empty_like(self.draws)
            self.spent.fill_(1)

    def _logits(self) -> Tensor:
        logits = self.logits
        if hasattr(logits, "full_tensor"):  # sharded, outside of forward: a collective call
            logits = logits.full_tensor()
        logits = logits.float()
        low, high = (torch.full_like(logits, end) for end in _LOGITS)
        return clamp_pulling_back(logits, low, high)

    def _settled(self) -> Tensor:
        return hard_concrete(self._logits(), seed=0, training=False)

    def extra_repr(self) -> str:
        if hasattr(self.logits, "full_tensor"):  # sharded: one rank may print alone
            return super().extra_repr()
        return f"{super().extra_repr()}, {self.effective_bits} bits kept"
