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

// 8 bits that are not evenly spaced are looked up in tables of bytes, where there are such.
#ifdef __x86_64__
extern const LutKernels lut_bytes_avx512;
extern const LutAlone lut_bytes_alone_avx512;
extern const LutIntegersBytes lut_integers_bytes_avx2, lut_integers_bytes_avx512;
extern const LutIntegersEights lut_integers_eights_avx512;
extern const LutIntegersTurned lut_integers_turned_avx512;
inline bool has_bytes(const Packed& w) { return w.bits == 8 && !w.uniform && isa() >= kAvx512 && has_vbmi(); }
inline const LutKernels& lut_kernels_of(const Packed& w) { return has_bytes(w) ? lut_bytes_avx512 : lut_kernels(); }
inline const LutAlone& lut_alone_of(const Packed& w) { return has_bytes(w) ? lut_bytes_alone_avx512 : lut_alone_kernels(); }
#else
inline const LutKernels& lut_kernels_of(const Packed&) { return lut_kernels(); }
inline const LutAlone& lut_alone_of(const Packed&) { return lut_alone_kernels(); }
#endif

// What multiplies integers, chosen at once: the layout of x is a matter of all. Without VNNI, of AVX-512's kernels only `bytes` can run.
struct IntegersHere {
  const LutIntegers* kernels;
  decltype(LutIntegersAmx::linear) tiles = nullptr;  // where there are none
  decltype(LutIntegersEights::alone) eights = nullptr;
  decltype(LutIntegersTurned::linear) turned = nullptr;
  bool several = false;  // whether `turned` is faster for several rows than other kernels: timed on Zen 4
  const LutIntegersBytes* bytes = nullptr;
};
inline IntegersHere integers_here() {
#ifdef __x86_64__
  const Isa now = isa();
  if (now >= kAvx512 && has_vnni()) {
    const bool bits = has_gfni() && !is_amd();
    return {&lut_integers_avx512, now == kAmx ? lut_integers_amx_avx512.linear : nullptr, bits ? lut_integers_eights_avx512.alone : nullptr,
            lut_integers_turned_avx512.linear, now == kAvx512Bf16};
  }
  if (now >= kAvx2) return {.kernels = &lut_integers_avx2, .bytes = now >= kAvx512 ? &lut_integers_bytes_avx512 : &lut_integers_bytes_avx2};
#endif
  return {&lut_integers_scalar};
}

}  // namespace qk
