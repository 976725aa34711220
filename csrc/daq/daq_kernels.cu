#include "../common/quant_kernels.cuh"
#include "daq.h"
namespace qk {
extern const QuantCudaKernels<DaqArgs, 3> daq_cuda;
const QuantCudaKernels<DaqArgs, 3> daq_cuda = QK_QUANT_CUDA_KERNELS(Daq);
}  // namespace qk
