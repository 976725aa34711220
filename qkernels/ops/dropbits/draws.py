"""Which draw a call of a layer with gates gets: a new one once a step, the same again in a backward.

The state is in two int64 tensors of one value, so that a compiled graph works on it too: ``draws``, the seed of the
present gates, and ``spent``, 1 where a backward has used them, else 0. The ops change them as torch's random ops
change the state of a generator: unseen by autograd and compilers, whose graphs would else refuse a second call before
the first one's backward (a saved tensor that was modified). Like those ops they are tagged nondeterministic_seeded.
"""

import torch
from torch import Tensor

_TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe)
_library = torch.library.Library("qkernels", "FRAGMENT")
_library.define("draw(Tensor draws, Tensor spent) -> Tensor", tags=_TAGS)
_library.define("spend(Tensor g, Tensor spent) -> Tensor", tags=_TAGS)
draw, spend = torch.ops.qkernels.draw.default, torch.ops.qkernels.spend.default


def _draw(draws: Tensor, spent: Tensor) -> Tensor:
    """The seed of the gates of this call: the next one where the present ones are spent, and then they no longer are.

    Inside a backward it is the present one, which activation checkpointing is to recompute. Whether it is inside one
    is seen when the op runs, not when a compiler traces it.
    """
    if torch._C._current_graph_task_id() == -1:
        draws.data.add_(spent)
        spent.data.zero_()
    return draws.clone()


def _spend(g: Tensor, spent: Tensor) -> Tensor:
    """A copy of g; sets ``spent``."""
    spent.data.fill_(1)
    return g.clone()


for _name, _run in (("draw", _draw), ("spend", _spend)):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    _library.impl(_name, lambda t, spent: torch.empty_like(t), "Meta")


torch.library.register_vmap(
    "qkernels::spend", lambda info, in_dims, g, spent: (spend(g, spent), in_dims[0]), lib=_library
)


def watch(t: Tensor, spent: Tensor) -> Tensor:
    """t; a backward through it sets ``spent``."""
    return _Watch.apply(t, spent)


class _Watch(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(t, spent):
        return t.view_as(t)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.spent = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return spend(g, ctx.spent), None
