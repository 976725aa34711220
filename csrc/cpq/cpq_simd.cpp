#include "../common/quant_simd.h"
#include "cpq.h"

#define QK_DEFINE(NAME, OP)                             \
  extern const QuantKernels<CpqArgs> QK_NAME(NAME);     \
  const QuantKernels<CpqArgs> QK_NAME(NAME) = QK_QUANT_KERNELS(OP);

namespace qk {
QK_DEFINE(cpq_argmax, CpqArgmax)
QK_DEFINE(cpq_argmax_truncated, CpqArgmaxTruncated)
QK_DEFINE(cpq_full, CpqFull)
QK_DEFINE(cpq_full_truncated, CpqFullTruncated)
}  // namespace qk
