"""DropBits in plain PyTorch: the definition, with every category probability. Its autograd is the gradient oracle."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from qkernels.ops.grids import Hardened, positive

_FAR = 1e4  # sigma: further off the grid every probability's gradient is 0, in float64 too


def dropbits(x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int) -> Tensor:
    """x: any shape; step, sigma: [P]; keep [bits - 1] or [2**(bits - 1) - 1]. The code is decided in float32.

    q_i = M_i pi_i / sum_j M_j pi_j, M_i the gate of code i; the gradient is that of step * code * q of the code chosen.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    step, sigma = torch.where(sigma > 0, positive(step), torch.nan), positive(sigma)
    code = _choose(x, step, sigma, keep, bits)  # [P, L]
    s, sigma, gates = step.to(wide)[:, None], sigma.to(wide)[:, None], _gates(keep.to(wide), bits)  # [K]
    top = 2 ** (bits - 1) - 1
    n = torch.arange(-top, top + 1, dtype=wide, device=x.device)  # [K]
    far = (top * s + _FAR * sigma).detach()
    v = torch.maximum(torch.minimum(x.to(wide).reshape(code.shape), far), -far)
    low, high = ((s[..., None] * (n + half) - v[..., None]) / sigma[..., None] for half in (-0.5, 0.5))
    log_p = logsigmoid(high) + logsigmoid(-low)  # [P, L, K]; less log(1 - e**-rho), which all have in common
    log_p = torch.where(gates > 0, log_p, -torch.inf)
    weight = gates * (log_p - log_p.detach().amax(-1, keepdim=True)).exp()
    chosen = (code.nan_to_num() + top).long()[..., None]
    q = weight.gather(-1, chosen)[..., 0] / weight.sum(-1)
    soft = (s * code).detach() * q  # its value is dropped, its gradient kept
    return (code.to(wide) * s + (soft - soft.detach()) + 0.0).to(x.dtype).reshape(x.shape)


def harden(values: Tensor, step: Tensor, keep: Tensor, bits: int) -> Hardened:
    """Of what ``dropbits`` gave, in float32. The grid ends at the outermost level that is not dropped."""
    code = (values.detach().reshape(step.shape[0], -1) / step.detach()[:, None]).round()
    kept = [last for _, last, gate in _levels(keep.detach(), bits) if gate > 0]
    n = torch.arange(-kept[-1], kept[-1] + 1, dtype=torch.float32, device=values.device)
    return Hardened((code + kept[-1]).to(torch.uint8).reshape(values.shape), n, step.detach())


def _levels(keep: Tensor, bits: int) -> list[tuple[int, int, Tensor]]:
    """(smallest magnitude, largest, gate) of each level; that of 0 is never dropped."""
    runs = [(2**k, 2 ** (k + 1) - 1) for k in range(bits - 1)]
    if keep.shape[0] != bits - 1:
        runs = [(k, k) for k in range(1, 2 ** (bits - 1))]
    return [(0, 0, torch.ones_like(keep[0])), *((*run, gate) for run, gate in zip(runs, keep, strict=True))]


def _gates(keep: Tensor, bits: int) -> Tensor:
    """The gate of every code, [K]."""
    outward = torch.cat([gate.expand(last - low + 1) for low, last, gate in _levels(keep, bits)])
    return torch.cat([outward[1:].flip(0), outward])


@torch.no_grad()
def _choose(x: Tensor, step: Tensor, sigma: Tensor, keep: Tensor, bits: int) -> Tensor:
    """The code with the largest M_i pi_i, [P, L] float32: of each level, the one nearest to x is a candidate.

    Among equal gates the nearest wins, half to even, as without gates.
    """
    v = x.detach().to(torch.float32).reshape(step.shape[0], -1) / step.to(torch.float32)[:, None]
    rho = (step.to(torch.float32) / sigma.to(torch.float32))[:, None]
    top = 2 ** (bits - 1) - 1
    a = torch.minimum(v.abs(), top + 100 / rho)  # further out nothing changes
    nearest = a.clamp(max=top).round()
    best = gate = score = distance = None
    for low, last, z in _levels(keep.to(torch.float32), bits):
        n = nearest.clamp(low, last)
        d = (a - n).abs()
        near = logsigmoid(rho * (0.5 - d)) + logsigmoid(rho * (0.5 + d)) + z.log()
        if best is None:
            best, gate, score, distance = n, z.expand_as(n), near, d
            continue
        closer = (d < distance) | ((d == distance) & (n == nearest))
        better = torch.where(gate == z, closer, near > score) & (z > 0)
        best, gate = torch.where(better, n, best), torch.where(better, z, gate)
        score, distance = torch.where(better, near, score), torch.where(better, d, distance)
    return torch.where(v < 0, -best, best)
