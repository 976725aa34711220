// The vocabulary of the ops' maths, for V = float. common/simd.h says the same words for sixteen floats at once, so that
// csrc/<op>/<op>.h is written once: a template over V that CUDA, AVX-512, AVX2 and scalar code all instantiate.
#pragma once
#include "bits.h"
#include "hd.h"

namespace qk {

// a * b + c and c - a * b, rounded once: the same bits with an instruction for it and without.
QK_HD float fused(float a, float b, float c) {
#if defined(__CUDA_ARCH__) || defined(__FP_FAST_FMAF) || (defined(QK_ISA) && QK_ISA)  // simd.h
  return __builtin_fmaf(a, b, c);
#else  // in double the product is exact; the sum is rounded to odd: its 53 bits then round to float as the exact sum would
  const double p = double(a) * double(b), z = c, s = p + z, t = s - p, lost = (p - (s - t)) + (z - t);
  uint64_t u;
  memcpy(&u, &s, 8);
  u += lost > 0 || lost < 0 ? (u & 1 ? 0 : (lost > 0) == (s > 0) ? 1 : -1) : 0;
  double odd;
  memcpy(&odd, &u, 8);
  return float(odd);
#endif
}
QK_HD float fused_less(float a, float b, float c) { return fused(-a, b, c); }

QK_HD bool any(bool m) { return m; }
QK_HD float select(bool m, float a, float b) { return m ? a : b; }
// A NaN v stays. (fminf and fmaxf would drop it.)
#ifdef __CUDA_ARCH__
QK_HD float at_most(float v, float hi) { float r; asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(v), "f"(hi)); return r; }
QK_HD float at_least(float v, float lo) { float r; asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(v), "f"(lo)); return r; }
#else
QK_HD float at_most(float v, float hi) { return v > hi ? hi : v; }
QK_HD float at_least(float v, float lo) { return v < lo ? lo : v; }
#endif
QK_HD float clamp(float v, float lo, float hi) { return at_most(at_least(v, lo), hi); }
QK_HD bool is_number(float v) { return v == v; }
QK_HD float absolute(float v) { return v < 0 ? -v : v + 0.0f; }  // -0 becomes +0
// Half to even, never -0. Exact for |v| <= 2**22: the sum has no fraction bits left.
QK_HD float round_even(float v) { return (v + 12582912.0f) - 12582912.0f; }
// The largest power of two <= v, for v >= 0; 0 for 0 and denormals.
QK_HD float pow2_floor(float v) { return from_bits(bits_of(v) & 0x7f800000u); }
// v / pow2_floor(v) in [1, 2), for normal v > 0.
QK_HD float mantissa(float v) { return from_bits((bits_of(v) & 0x7fffffu) | 0x3f800000u); }
// The larger; b where either is NaN.
QK_HD float larger(float a, float b) { return a > b ? a : b; }
// y * 2**n for a whole n in [-126, 127]; a NaN y stays.
QK_HD float times_pow2(float y, float n) { return y * from_bits((bits_of(n + 12582912.0f) + 127) << 23); }  // n is in the low bits
// table[index] for a whole index in [0, 15]; anything for others.
QK_HD float lookup(const float* table, float index) { return table[bits_of(index + 12582912.0f) & 15]; }
// A step or scale that is not positive gives NaN, so that a collapsed parameter is seen.
QK_HD float positive_or_nan(float s) { return s > 0.0f ? s : from_bits(0x7fc00000u); }

}  // namespace qk
