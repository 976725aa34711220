"""Two gloo processes on the CPU: DDP and FSDP2 compute what one process computes on the whole batch."""

import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import qkernels as qk

RANKS, BATCH = 2, 8
RULES = [("0", (qk.LSQ(bits=4, granularity=32), qk.LSQ(bits=4))), ("*", (qk.POST(bits=4), qk.LSQ(bits=4)))]
# bounds beside a scale, one of them without a gradient, and a quantizer with a network in it
OTHERS = [("0", (qk.DAQ(bits=4, granularity="row"), qk.ASQ(bits=4))), ("*", (qk.ASQ(bits=4), qk.DAQ(bits=4)))]

GATED = [(name, (qk.CPQ(bits=4, dropbits=kind, penalty=0.1), qk.LSQ(bits=4))) for name, kind in
         (("0", "bitwise"), ("*", "endpoints"))]  # fmt: skip


def make(rules=RULES) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    qk.prepare_(model, rules)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, 64, generator=g), torch.randn(BATCH, 10, generator=g)


def part(t: torch.Tensor) -> torch.Tensor:
    """This rank's half of a batch."""
    return t.chunk(RANKS)[dist.get_rank()]


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 2) -> list[torch.Tensor]:
    """Losses of a few steps; the gradients of the last stay."""
    optimizer = torch.optim.SGD(qk.param_groups(model, lr=0.1, quantizer_lr=0.5, weight_decay=0.01))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y) + qk.penalty(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def whole(t: torch.Tensor) -> torch.Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def same_as_alone(wrapped: nn.Module, alone: nn.Module) -> None:
    """Same losses, gradients and parameters as one process that sees the whole batch."""
    x, y = batch()
    want = train(alone, x, y)
    losses = torch.stack(train(wrapped, part(x), part(y)))
    dist.all_reduce(losses)
    torch.testing.assert_close(losses / RANKS, torch.stack(want))
    inner = wrapped.module if isinstance(wrapped, DistributedDataParallel) else wrapped
    for (name, p), own in zip(inner.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(p.grad), own.grad, msg=lambda m, name=name: f"gradient of {name}: {m}")
        torch.testing.assert_close(whole(p.detach()), own.detach(), msg=lambda m, name=name: f"{name}: {m}")


def calibrated(rules=RULES) -> nn.Sequential:
    model = make(rules)
    qk.calibrate(model, batch()[0])
    return model


def ddp_trains_as_one_process() -> None:
    same_as_alone(DistributedDataParallel(calibrated()), calibrated())


def sharded(model: nn.Module, own_groups: bool) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (RANKS,))
    if own_groups:
        for _, quantizer in list(qk.nn.quantizers(model)):
            fully_shard(quantizer, mesh=mesh)
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp2_trains_as_one_process() -> None:
    """With the quantizers in groups of their own, and in their layers' groups."""
    for own_groups in (True, False):
        same_as_alone(sharded(calibrated(), own_groups), calibrated())


def every_kind_of_quantizer_trains_as_one_process() -> None:
    same_as_alone(DistributedDataParallel(calibrated(OTHERS)), calibrated(OTHERS))
    for own_groups in (True, False):
        same_as_alone(sharded(calibrated(OTHERS), own_groups), calibrated(OTHERS))


def gates_are_drawn_alike_and_resumed() -> None:
    """Every rank draws the same gates at each step, those of one process; a gathered state goes on drawing."""
    wraps = [DistributedDataParallel, *(lambda m, own=own: sharded(m, own) for own in (True, False))]
    for wrap in wraps:
        model, alone, (x, y) = wrap(calibrated(GATED)), calibrated(GATED), batch()
        before = [q.draws.clone() for q in drawing(alone)]
        same_as_alone(model, alone)
        for q, own, start in zip(drawing(model), drawing(alone), before, strict=True):
            assert torch.equal(q.draws, own.draws) and own.draws == start + 2
        if dist.get_rank() == 0:
            repr(model)  # no collective call
        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=False))
        resumed = wrap(calibrated(GATED))
        for q in drawing(resumed):
            q.draws.fill_(7)
        set_model_state_dict(
            resumed,
            state if dist.get_rank() == 0 else {},
            options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
        )
        for q, own in zip(drawing(resumed), drawing(alone), strict=True):
            assert torch.equal(q.draws, own.draws)
        losses = [train(m, part(x), part(y), steps=1)[0] for m in (resumed, model)]
        torch.testing.assert_close(losses[0], losses[1])


def drawing(model: nn.Module) -> list[qk.nn.DropBitsQuantizer]:
    return [m for m in model.modules() if isinstance(m, qk.nn.DropBitsQuantizer)]


def a_gathered_state_converts_exactly() -> None:
    model, (x, y) = sharded(calibrated(), own_groups=True), batch()
    train(model, part(x), part(y))
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    fresh = make()
    if dist.get_rank() == 0:  # full state dicts are gathered on the first rank
        fresh.load_state_dict(state)
        assert all(q.calibrated for _, q in qk.nn.quantizers(fresh))
        weight = fresh[0].weight_quantizer(fresh[0].weight)
        assert qk.convert_(fresh).exact
        assert torch.equal(fresh[0].weight_lut.dequantize(), weight)


def calibrate_agrees_over_ranks() -> None:
    """One rank sees negative values, the other none: the grid is signed on both, its step the mean of the two."""
    x = batch()[0]
    mine = (x.abs() + 1) if dist.get_rank() else x
    model = make()
    qk.calibrate(model, mine)
    config = model[0].activation_quantizer.config
    assert config.signed is True
    steps = [config.init(t, 1)["step"] for t in (x, x.abs() + 1)]
    torch.testing.assert_close(model[0].activation_quantizer.step.detach(), (steps[0] + steps[1]) / 2)
    for name, tensor in model.state_dict().items():
        first = tensor.clone()
        dist.broadcast(first, 0)
        assert torch.equal(first, tensor), name


def prepare_is_no_collective_call() -> None:
    """One rank may prepare alone, for instance to print a plan or to convert."""
    if dist.get_rank() == 0:
        model = nn.Sequential(nn.Linear(64, 48))
        qk.prepare_(model, [("0", qk.LSQ(bits=4, granularity=32))])
        assert qk.convert_(model).exact


def what_cannot_be_right_is_refused() -> None:
    x = batch()[0]
    with pytest.raises(RuntimeError, match="in a distributed run, call qk.calibrate.* on every rank before wrapping"):
        make()(x)
    ddp = DistributedDataParallel(calibrated())
    fsdp = sharded(calibrated(), own_groups=True)
    for model, kind in ((ddp, "DistributedDataParallel"), (fsdp, "FSDPSequential")):
        for name, call in (("prepare_", lambda m: qk.prepare_(m, RULES)), ("convert_", qk.convert_)):
            with pytest.raises(ValueError, match=f"{name}: the model must not be wrapped .*, got {kind} at ''"):
                call(model)
        with pytest.raises(ValueError, match="calibrate: the model must not be wrapped"):
            qk.calibrate(model, x)
    with pytest.raises(ValueError, match="LSQ: calibrate before fully_shard, got sharded parameters"):
        fsdp[0].activation_quantizer.calibrate(x)


PROMISES = [
    ddp_trains_as_one_process,
    fsdp2_trains_as_one_process,
    every_kind_of_quantizer_trains_as_one_process,
    gates_are_drawn_alike_and_resumed,
    a_gathered_state_converts_exactly,
    calibrate_agrees_over_ranks,
    prepare_is_no_collective_call,
    what_cannot_be_right_is_refused,
]


def work(rank: int, folder: str) -> None:
    """One process: run every promise, write down what broke."""
    torch.set_num_threads(1)
    meet, patience = f"file://{folder}/meet", timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=RANKS, timeout=patience)
    for promise in PROMISES:
        try:
            promise()
        except Exception:
            Path(folder, f"{promise.__name__}.{rank}").write_text(traceback.format_exc())
            break  # the other rank may be waiting for us in another call: nothing after this can be trusted
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where two processes, started once, have left the errors of all promises."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return folder


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_two_processes(promise, folder):
    errors = [file.read_text() for file in sorted(folder.glob(f"{promise.__name__}.*"))]
    assert not errors, "\n".join(errors)
    broken = [file.name for file in folder.iterdir() if "." in file.name]
    order = [p.__name__ for p in PROMISES]
    earlier = [name for name in broken if order.index(name.split(".")[0]) < order.index(promise.__name__)]
    assert not earlier, f"not run: {', '.join(earlier)} broke first"
