// float16 and bfloat16 as bits: conversions that round half to even and keep NaN, on any compiler.
#pragma once
#include <cstdint>
#include <cstring>
#include "hd.h"
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace qk {

struct half { uint16_t bits; };
struct bfloat { uint16_t bits; };

QK_HD uint32_t bits_of(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
QK_HD float from_bits(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }

QK_HD float to_float(float f) { return f; }
QK_HD float to_float(bfloat b) { return from_bits(uint32_t(b.bits) << 16); }
QK_HD float to_float(half h) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(h.bits));
#else
  const uint32_t sign = uint32_t(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);  // Inf, NaN
  if (rest >= 0x400u) return from_bits(sign | ((rest << 13) + 0x38000000u));  // from float16's exponent bias to float32's
  // Below 2**-14: 2**-14 with these bits added, less 2**-14; no float32 on the way is denormal, which a processor may count as 0.
  return from_bits(sign | bits_of(from_bits(rest << 13 | 0x38800000u) - from_bits(0x38800000u)));
#endif
}

QK_HD void from_float(float f, float* out) { *out = f; }
QK_HD void from_float(float f, bfloat* out) {
#ifdef __CUDA_ARCH__
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(f));
#else
  const uint32_t u = bits_of(f);
  out->bits = f == f ? uint16_t((u + 0x7fffu + (u >> 16 & 1u)) >> 16) : uint16_t(0x7fc0u);
#endif
}
QK_HD void from_float(float f, half* out) {
#ifdef __CUDA_ARCH__
  out->bits = __half_as_ushort(__float2half_rn(f));
#else
  const uint32_t u = bits_of(f), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
  uint32_t h;
  if (a > 0x7f800000u) h = 0x7e00u;                                       // NaN
  else if (a >= 0x477ff000u) h = 0x7c00u;                                 // rounds to 65536 or more: Inf
  else if (a < 0x38800000u) h = bits_of(from_bits(a) + 0.5f) - 0x3f000000u;  // below 2**-14: the sum's last bit is 2**-24
  else h = (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13;
  out->bits = uint16_t(sign | h);
#endif
}

// Two at once: one instruction of a GPU.
template <class T>
QK_HD void from_floats(float a, float b, T* out) { from_float(a, out), from_float(b, out + 1); }
#ifdef __CUDA_ARCH__
QK_HD void from_floats(float a, float b, bfloat* out) { const __nv_bfloat162 v = __floats2bfloat162_rn(a, b); memcpy(out, &v, 4); }
QK_HD void from_floats(float a, float b, half* out) { const __half2 v = __floats2half2_rn(a, b); memcpy(out, &v, 4); }
#endif

}  // namespace qk
