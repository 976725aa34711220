#include "../common/quant_simd.h"
#include "daq.h"
namespace qk {
extern const QuantKernels<DaqArgs> QK_NAME(daq);
const QuantKernels<DaqArgs> QK_NAME(daq) = QK_QUANT_KERNELS(Daq);
}  // namespace qk
