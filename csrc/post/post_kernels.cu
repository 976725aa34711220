#include "../common/quant_kernels.cuh"
#include "post.h"
namespace qk {
extern const QuantCudaKernels<PostArgs, 1> post_cuda;
const QuantCudaKernels<PostArgs, 1> post_cuda = QK_QUANT_CUDA_KERNELS(Post);
}  // namespace qk
