#include "../common/quant_kernels.cuh"
#include "lsq.h"
namespace qk {
extern const QuantCudaKernels<LsqArgs, 1> lsq_cuda;
const QuantCudaKernels<LsqArgs, 1> lsq_cuda = QK_QUANT_CUDA_KERNELS(Lsq);
}  // namespace qk
