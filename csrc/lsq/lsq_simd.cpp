#include "../common/quant_simd.h"
#include "lsq.h"
QK_KERNELS(QuantKernels<LsqArgs>, lsq, QK_QUANT_KERNELS(Lsq))
