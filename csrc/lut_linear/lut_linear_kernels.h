#pragma once
#include "../common/isa.h"
#include "lut_integers.h"
#include "lut_linear.h"
QK_DECLARE_KERNELS(LutKernels, lut)
QK_DECLARE_KERNELS(LutAlone, lut_alone)
QK_DECLARE_KERNELS(LutPairs, lut_pairs)
QK_DECLARE_KERNELS(LutAmx, lut_amx)
QK_DECLARE_KERNELS(LutIntegers, lut_integers)
QK_DECLARE_KERNELS(LutIntegersAmx, lut_integers_amx)

namespace qk {
inline const LutIntegers& lut_integers() {
#ifdef __x86_64__
  if (isa() >= kAvx512 && !has_vnni()) return lut_integers_avx2;
#endif
  return lut_integers_kernels();
}
}  // namespace qk
