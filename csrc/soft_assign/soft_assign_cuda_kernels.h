// What soft_assign_kernels.cu offers its binding, by dtype: 0 float32, 1 float16, 2 bfloat16. Torch-free.
#pragma once
#ifndef QK_SIMT_HOST
#include <cuda_runtime.h>
#endif
#include "../common/blocks.h"

namespace qk {

struct SoftAssignCudaKernels {
  cudaError_t (*forward[3])(const Blocks&, int64_t K, bool hard, const void* x,
                            const float* levels,       // [P, K]
                            const float* temperature,  // [P]
                            void* y, cudaStream_t);
  cudaError_t (*backward[3])(const Blocks&, int64_t K, const void* g, const void* x, const float* levels,
                             const float* temperature, void* dx,
                             float* partial,  // [jobs, K + 1]
                             float* dlevels,  // [P, K]
                             float* dtemperature, cudaStream_t);
};

}  // namespace qk
