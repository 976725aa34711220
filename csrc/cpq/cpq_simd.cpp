#include "../common/quant_simd.h"
#include "cpq.h"
QK_KERNELS(QuantKernels<CpqArgs>, cpq_argmax, QK_QUANT_KERNELS(CpqArgmax))
QK_KERNELS(QuantKernels<CpqArgs>, cpq_argmax_truncated, QK_QUANT_KERNELS(CpqArgmaxTruncated))
QK_KERNELS(QuantKernels<CpqArgs>, cpq_full, QK_QUANT_KERNELS(CpqFull))
QK_KERNELS(QuantKernels<CpqArgs>, cpq_full_truncated, QK_QUANT_KERNELS(CpqFullTruncated))
