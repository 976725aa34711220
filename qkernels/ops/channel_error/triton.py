"""The three sums a channel in Triton: a program per tile of channels x elements, one partial sum each."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from qkernels.ops.tiles import clamp, load_parameter, round_even


@triton.jit
def channel_error_kernel(
    x_ptr, step_ptr, ds_ptr, C, inner, M, columns, qmin, qmax, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """x [outer, C, inner], M = outer * inner; ds [3, C, columns]."""
    pid = tl.program_id(0).to(tl.int64)
    rows = pid // columns * ROWS + tl.arange(0, ROWS)
    cols = pid % columns * BLOCK + tl.arange(0, BLOCK)
    inside = rows < C
    mask = inside[:, None] & (cols < M)[None, :]
    offs = (cols // inner * C * inner + cols % inner)[None, :] + rows[:, None] * inner
    s = load_parameter(step_ptr, rows * 0, 1)
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    k = round_even(clamp(tl.div_rn(x, s), qmin, qmax))
    sums = ds_ptr + rows * columns + pid % columns
    size = tl.full((), columns, tl.int64) * C  # Triton makes an argument that is 1 a plain int, without .to
    tl.store(sums, tl.sum(x * x, axis=1), mask=inside)
    tl.store(sums + size, tl.sum(k * x, axis=1), mask=inside)
    tl.store(sums + 2 * size, tl.sum(k * k, axis=1), mask=inside)


def channel_error(x: Tensor, step: Tensor, qmin: int, qmax: int, dim: int) -> Tensor:
    C = x.shape[dim]
    if not x.numel():
        return step.new_zeros(3, C)
    inner = x[(0,) * (dim + 1)].numel()
    M = x.numel() // C
    rows = min(32, triton.next_power_of_2(C))
    block = min(2048 // rows, triton.next_power_of_2(M))
    columns = triton.cdiv(M, block)
    ds = torch.empty(3, C, columns, dtype=torch.float32, device=x.device)
    args = (x, step, ds, C, inner, M, columns, float(qmin), float(qmax), rows, block)
    channel_error_kernel[(triton.cdiv(C, rows) * columns,)](*args, num_warps=8, enable_fp_fusion=False)
    return ds.sum(2)
