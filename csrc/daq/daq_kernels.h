#pragma once
#include "../common/isa.h"
#include "../common/quant_kernels.h"
#include "daq.h"
QK_DECLARE_KERNELS(QuantKernels<DaqArgs>, daq)
