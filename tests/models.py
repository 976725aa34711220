"""A model with a bit of everything, and it trained: what the tests of whole models share."""

import torch
import torch.nn.functional as F
from torch import nn

import qkernels as qk

W4A4 = (qk.LSQ(bits=4, granularity="row"), qk.LSQ(bits=4))
RULES = [(nn.Conv2d, qk.POST(bits=4)), ("mlp.*", W4A4), ("head", qk.LSQ(bits=2))]


class Net(nn.Module):
    """A bit of everything: conv, batch norm, nested names, an embedding that is tied to the head, a shared layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.mlp = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 64))
        self.again = self.mlp[0]
        self.embed = nn.Embedding(10, 32)
        self.head = nn.Linear(32, 10)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        x = F.relu(self.norm(self.conv(x)) * scale)
        x = self.mlp(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return self.head(self.again(x).relu())


def make(rules=RULES) -> Net:
    torch.manual_seed(0)
    model = Net()
    if rules:
        qk.prepare_(model, rules, skip=["embed"])
    return model


def images(count: int = 6, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def trained(rules=RULES) -> Net:
    """A few steps from float, so that nothing sits where it started."""
    model = make(rules)
    qk.calibrate(model, images())
    optimizer = torch.optim.Adam(qk.param_groups(model, lr=1e-2, weight_decay=0.01))
    for seed in range(4):
        loss = model(images(seed=seed)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()
