#pragma once
#include "../common/isa.h"
#include "lut_linear_int.h"
QK_DECLARE_KERNELS(PostKernels, lut_linear_int)
QK_DECLARE_KERNELS(PostQuantize, lut_linear_int_quantize)
#ifdef __x86_64__
QK_DECLARE_KERNELS(PostAmx, lut_linear_int_amx)
QK_DECLARE_KERNELS(PostKernels, lut_linear_int_vnni)  // null where the instruction set has no such instruction
#endif
