// What dropbits_kernels.cu offers its binding, by dtype: 0 float32, 1 float16, 2 bfloat16. Torch-free.
#pragma once
#ifndef QK_SIMT_HOST
#include <cuda_runtime.h>
#endif
#include "../common/quant_cuda_kernels.h"
#include "dropbits.h"

namespace qk {

struct DropBitsCudaKernels {
  cudaError_t (*forward[3])(const DropBitsArgs&, const Blocks&, const void* x,
                            Params<3>,  // step [P], sigma [P], keep [levels - 1]
                            void* y, cudaStream_t);
  cudaError_t (*backward[3])(const DropBitsArgs&, const Blocks&, const void* g, const void* x, Params<3>, void* dx,
                             float* partial,  // [jobs, 1 + levels]
                             float* dstep,    // [P]
                             float* dsigma,   // [P]
                             float* dkeep,    // [levels - 1]
                             cudaStream_t);
};

}  // namespace qk
