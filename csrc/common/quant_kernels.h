// What a block-wise quantizer offers for one instruction set, by dtype: 0 float32, 1 float16, 2 bfloat16.
#pragma once
#include <cstdint>
#include "blocks.h"

namespace qk {

template <class Args>
struct QuantKernels {
  // Jobs [begin, end) of y = op(x).
  void (*forward[3])(const Args&, const Blocks&, int64_t begin, int64_t end, const void* x, const float* const* params, void* y);
  // Jobs [begin, end) of dx, and of partial [jobs, kParams]: the parameters' gradients, one sum a job.
  void (*backward[3])(const Args&, const Blocks&, int64_t begin, int64_t end, const void* g, const void* x,
                      const float* const* params, void* dx, double* partial);
};

}  // namespace qk
