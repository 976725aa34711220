#pragma once
#include "../common/isa.h"
#include "../common/quant_kernels.h"
#include "lsq.h"
QK_DECLARE_KERNELS(QuantKernels<LsqArgs>, lsq)
