#include "../common/quant_simd.h"
#include "lsq.h"
namespace qk {
extern const QuantKernels<LsqArgs> QK_NAME(lsq);
const QuantKernels<LsqArgs> QK_NAME(lsq) = QK_QUANT_KERNELS(Lsq);
}  // namespace qk
