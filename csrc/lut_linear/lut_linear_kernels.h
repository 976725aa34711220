#pragma once
#include "../common/isa.h"
#include "lut_linear.h"
QK_DECLARE_KERNELS(LutKernels, lut)
QK_DECLARE_KERNELS(LutAlone, lut_alone)
QK_DECLARE_KERNELS(LutPairs, lut_pairs)
QK_DECLARE_KERNELS(LutAmx, lut_amx)
