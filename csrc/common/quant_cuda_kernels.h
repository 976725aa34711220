// What a block-wise quantizer's .cu offers its binding, by dtype: 0 float32, 1 float16, 2 bfloat16. Torch-free.
#pragma once
#ifndef QK_SIMT_HOST
#include <cuda_runtime.h>
#endif
#include "blocks.h"

namespace qk {

template <int N>
struct Params { const float* p[N]; };  // device pointers, each [P]

template <class Args, int N>
struct QuantCudaKernels {
  cudaError_t (*forward[3])(const Args&, const Blocks&, const void* x, Params<N>, void* y, cudaStream_t);
  cudaError_t (*backward[3])(const Args&, const Blocks&, const void* g, const void* x, Params<N>, void* dx,
                             float* partial,  // [jobs, N]
                             float* grads,    // [N, P]
                             cudaStream_t);
};

}  // namespace qk
