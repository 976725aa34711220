#pragma once
#include "../common/isa.h"
#include "lut_linear_int.h"
QK_DECLARE_KERNELS(LutInt, lut_linear_int)
QK_DECLARE_KERNELS(LutIntAmx, lut_linear_int_amx)
QK_DECLARE_KERNELS(LutIntQuantize, lut_linear_int_quantize)
#ifdef __x86_64__
namespace qk { extern const LutInt lut_linear_int_without_vnni_avx512; }
#endif
