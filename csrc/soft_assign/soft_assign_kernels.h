// What soft_assign offers for one instruction set, by dtype: 0 float32, 1 float16, 2 bfloat16.
#pragma once
#include "../common/blocks.h"
#include "../common/isa.h"

namespace qk {

struct SoftAssignKernels {
  // Jobs [begin, end) of y. levels [P, K], temperature [P].
  void (*forward[3])(const Blocks&, int64_t K, bool hard, int64_t begin, int64_t end, const void* x, const float* levels,
                     const float* temperature, void* y);
  // Jobs [begin, end) of dx, and of partial [jobs, K + 1]: the gradients of the levels and, last, of the temperature.
  void (*backward[3])(const Blocks&, int64_t K, int64_t begin, int64_t end, const void* g, const void* x,
                      const float* levels, const float* temperature, void* dx, double* partial);
};

}  // namespace qk

QK_DECLARE_KERNELS(SoftAssignKernels, soft_assign)
