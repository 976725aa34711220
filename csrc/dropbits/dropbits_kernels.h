#pragma once
#include "../common/isa.h"
#include "../common/quant_kernels.h"
#include "dropbits.h"
QK_DECLARE_KERNELS(QuantKernels<DropBitsArgs>, dropbits)
