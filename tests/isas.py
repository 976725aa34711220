"""The instruction sets of the CPU kernels that this machine has."""

import torch

from qkernels import backends

ALL = torch.ops.qkernels_cpu.isas().split(", ") if backends.HAS_COMPILED else []
SAME_BITS = [name for name in ALL if name in ("scalar", "avx2", "avx512")]  # the rest differ in lut_linear
