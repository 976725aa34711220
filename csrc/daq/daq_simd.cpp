#include "../common/quant_simd.h"
#include "daq.h"
QK_KERNELS(QuantKernels<DaqArgs>, daq, QK_QUANT_KERNELS(Daq))
