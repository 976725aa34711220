// What channel_error_kernels.cu offers its binding, by dtype: 0 float32, 1 float16, 2 bfloat16. Torch-free.
#pragma once
#ifndef QK_SIMT_HOST
#include <cuda_runtime.h>
#endif
#include <cstdint>

namespace qk {

// How partial sums lie: [slots, C, parts, 3]; all those of a channel are added up.
struct ChannelParts { int64_t slots, parts; };

struct ChannelErrorCudaKernels {
  ChannelParts (*parts)(int64_t outer, int64_t C, int64_t inner);
  cudaError_t (*run[3])(int64_t outer, int64_t C, int64_t inner, float lo, float hi,
                        const float* step,  // one value
                        const void* x,      // [outer, C, inner], not empty
                        float* partial,     // as parts() says
                        float* sums,        // [3, C]
                        cudaStream_t);
};

}  // namespace qk
