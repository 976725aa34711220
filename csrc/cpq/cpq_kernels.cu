#include "../common/quant_kernels.cuh"
#include "cpq.h"

#define QK_DEFINE(NAME, OP)                          \
  extern const QuantCudaKernels<CpqArgs, 2> NAME;    \
  const QuantCudaKernels<CpqArgs, 2> NAME = QK_QUANT_CUDA_KERNELS(OP);

namespace qk {
QK_DEFINE(cpq_argmax_cuda, CpqArgmax)
QK_DEFINE(cpq_argmax_truncated_cuda, CpqArgmaxTruncated)
QK_DEFINE(cpq_full_cuda, CpqFull)
QK_DEFINE(cpq_full_truncated_cuda, CpqFullTruncated)
}  // namespace qk
