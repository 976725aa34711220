// A compiled kernel is found by its name: QK_EXPORT(cpu, lsq_fwd, "(Tensor x, ...) -> Tensor") makes
// torch.ops.qkernels_cpu.lsq_fwd, which qkernels/backends.py lists as the backend "cpu" of lsq_fwd.
#pragma once
#include <torch/csrc/stable/library.h>

#define QK_EXPORT(backend, name, schema)                                              \
  STABLE_TORCH_LIBRARY_FRAGMENT(qkernels_##backend, m) { m.def(#name schema); }       \
  STABLE_TORCH_LIBRARY_IMPL(qkernels_##backend, CompositeExplicitAutograd, m) { m.impl(#name, TORCH_BOX(&name)); }
