"""Training, prediction and the time of a step: the same few lines for float and quantized models."""

import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qkernels as qk
from qkernels.methods import Method

from .models import rules

BATCH = 128


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    lr: float,
    seed: int,
    after_epoch: Callable[[], None] = lambda: None,
) -> list[float]:
    """Adam with a cosine to 0 (rates: ``make_optimizer``); returns the mean loss of each epoch."""
    optimizer = make_optimizer(model, lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-len(x) // BATCH))
    losses = []
    model.train()
    for order in orders(len(x), epochs, seed):
        total = 0.0
        for batch in order.split(BATCH):
            total += step(model, optimizer, x[batch], y[batch]).item() * len(batch)
            schedule.step()
        losses.append(total / len(x))
        after_epoch()
    return losses


def orders(n: int, epochs: int, seed: int) -> list[Tensor]:
    """A shuffled order of n samples for each epoch."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=generator) for _ in range(epochs)]


def make_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    # A step of Adam is about lr whatever the gradient, and a quantizer's step is a tenth of a weight's size or less.
    # A gate's logit has to cross 0 from 2.2 within the few steps of the fine-tuning.
    return torch.optim.Adam(qk.param_groups(model, lr, quantizer_lr=lr / 10, gate_lr=10 * lr), fused=True)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Tensor:
    """One step of training; returns the loss."""
    loss = F.cross_entropy(model(x), y) + qk.penalty(model)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def quantized(model: nn.Module, weight: Method, batch: Tensor) -> nn.Module:
    """A copy of the float model with quantizers in it, which start from its weights and from one batch."""
    model = copy.deepcopy(model)
    qk.prepare_(model, rules(weight))
    qk.calibrate(model, batch)
    return model


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    return model.eval()(x)


def step_ms(models: list[nn.Module], x: Tensor, y: Tensor, rounds: int) -> tuple[list[float], list[float]]:
    """(median milliseconds of a step of each model, median ratio to the first model's step of the same round).

    All models take a step in each round, so that a noisy neighbor meets all of them.
    """
    copies = [copy.deepcopy(model).train() for model in models]
    runs = [(model, make_optimizer(model, lr=0.0)) for model in copies]  # the work of a step, and no change
    times: list[list[float]] = [[] for _ in models]
    for i in range(rounds + 2):  # 2 to warm up
        for (model, optimizer), mine in zip(runs, times, strict=True):
            start = time.perf_counter()
            step(model, optimizer, x, y)
            if i >= 2:
                mine.append(1e3 * (time.perf_counter() - start))
    ratios = [statistics.median(t / t0 for t, t0 in zip(mine, times[0], strict=True)) for mine in times]
    return [statistics.median(mine) for mine in times], ratios
