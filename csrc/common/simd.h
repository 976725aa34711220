// Sixteen floats at once, on whatever instruction set the file is compiled for: one AVX-512 register, two AVX2 registers, or
// sixteen scalars. Always sixteen, so that a kernel is written once and every sum has the same order, and the same bits,
// on every machine.
//
// A file that includes this is compiled once per instruction set (QK_ISA = 512, 2 or 0) and holds nothing else: no torch, no
// standard containers. Everything is in an anonymous namespace, so that no function compiled for AVX-512 can be linked into
// code that runs on an older CPU (a test reads the symbols). The target is set by pragma rather than by -m flags for
// the same reason (for clang, whose pragma must end in the same file, by CMakeLists.txt's flags).
#pragma once
#include <cstdint>
#include <cstring>
#include "bits.h"
#include "hd.h"
#include "maths.h"
#if defined(__x86_64__) && QK_ISA
#include <immintrin.h>
#endif

#ifndef QK_ISA
#error "compile with -DQK_ISA=512 (AVX-512), 2 (AVX2) or 0 (scalar)"
#endif
#if QK_ISA == 512
#define QK_NAME(op) op##_avx512
#ifndef __clang__
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#elif QK_ISA == 2
#define QK_NAME(op) op##_avx2
#ifndef __clang__
#pragma GCC target("avx2,fma,f16c")
#endif
#else
#define QK_NAME(op) op##_scalar
#undef QK_LONG
#define QK_LONG __attribute__((noinline))
#endif

// This file's table of kernels: what QK_DECLARE_KERNELS of isa.h declares.
#define QK_KERNELS(TABLE, NAME, ...)         \
  namespace qk {                             \
  extern const TABLE QK_NAME(NAME);          \
  const TABLE QK_NAME(NAME) = __VA_ARGS__;   \
  }

// Between them a file may use instructions that its set does not name.
#define QK_PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#define QK_ALSO(target_) QK_PRAGMA(clang attribute push(__attribute__((target(target_))), apply_to = function))
#define QK_NO_MORE QK_PRAGMA(clang attribute pop)
#else
#define QK_ALSO(target_) QK_PRAGMA(GCC target(target_))
#define QK_NO_MORE
#endif

#define QK_IN static inline __attribute__((always_inline))

namespace {

constexpr int kLanes = 16;

#if QK_ISA == 512
// ---------------------------------------------------------------- AVX-512: one register
struct M { __mmask16 m; };
struct F {
  __m512 v;
  F() = default;
  QK_HD F(__m512 a) : v(a) {}
  QK_HD F(float a) : v(_mm512_set1_ps(a)) {}
};
QK_IN F operator+(F a, F b) { return _mm512_add_ps(a.v, b.v); }
QK_IN F operator-(F a, F b) { return _mm512_sub_ps(a.v, b.v); }
QK_IN F operator*(F a, F b) { return _mm512_mul_ps(a.v, b.v); }
QK_IN F operator/(F a, F b) { return _mm512_div_ps(a.v, b.v); }
QK_IN F fused(F a, F b, F c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
QK_IN F fused_less(F a, F b, F c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
QK_IN M operator<(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
QK_IN M operator<=(F a, F b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
QK_IN M operator&(M a, M b) { return {__mmask16(a.m & b.m)}; }
QK_IN M operator|(M a, M b) { return {__mmask16(a.m | b.m)}; }
QK_IN bool any(M m) { return m.m != 0; }
QK_IN M is_number(F a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_ORD_Q)}; }
QK_IN F select(M m, F a, F b) { return _mm512_mask_blend_ps(m.m, b.v, a.v); }
// The x86 min and max return their second operand if one is NaN: v goes there.
QK_IN F at_most(F v, F hi) { return _mm512_min_ps(hi.v, v.v); }
QK_IN F at_least(F v, F lo) { return _mm512_max_ps(lo.v, v.v); }
QK_IN F absolute(F v) { return _mm512_abs_ps(v.v); }
QK_IN F pow2_floor(F v) { return _mm512_and_ps(v.v, _mm512_castsi512_ps(_mm512_set1_epi32(0x7f800000))); }
QK_IN F mantissa(F v) {  // (v & 0x7fffff) | 1.0
  const __m512i bits = _mm512_castps_si512(v.v), low = _mm512_set1_epi32(0x7fffff), one = _mm512_set1_epi32(0x3f800000);
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, low, one, 0xea));
}
QK_IN F larger(F a, F b) { return _mm512_max_ps(a.v, b.v); }  // the second where one is NaN
QK_IN F times_pow2(F y, F n) { return _mm512_scalef_ps(y.v, n.v); }
// As functions.h has it; what becomes 0 is not computed here.
QK_IN F scaled(F y, F n) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n.v, _mm512_set1_ps(-124.0f), _CMP_NLT_UQ), y.v, n.v);
}
QK_IN void lanes(F a, float* out) { _mm512_storeu_ps(out, a.v); }
QK_IN F load(const float* p) { return _mm512_loadu_ps(p); }
QK_IN F lookup(const float* table, F index) {
  return _mm512_permutexvar_ps(_mm512_cvtps_epi32(index.v), _mm512_loadu_ps(table));
}
QK_IN void store(float* p, F a) { _mm512_storeu_ps(p, a.v); }
QK_IN F load(const qk::half* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
QK_IN void store(qk::half* p, F a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
QK_IN F load(const qk::bfloat* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
QK_IN void store(qk::bfloat* p, F a) {
  const __m512i u = _mm512_castps_si512(a.v), odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  r = _mm512_mask_mov_epi32(_mm512_set1_epi32(0x7fc0), is_number(a).m, r);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}

#elif QK_ISA == 2
// ---------------------------------------------------------------- AVX2: two registers
struct M { __m256 m[2]; };
struct F {
  __m256 v[2];
  F() = default;
  QK_HD F(__m256 a, __m256 b) : v{a, b} {}
  QK_HD F(float a) : v{_mm256_set1_ps(a), _mm256_set1_ps(a)} {}
};
QK_IN F operator+(F a, F b) { return {_mm256_add_ps(a.v[0], b.v[0]), _mm256_add_ps(a.v[1], b.v[1])}; }
QK_IN F operator-(F a, F b) { return {_mm256_sub_ps(a.v[0], b.v[0]), _mm256_sub_ps(a.v[1], b.v[1])}; }
QK_IN F operator*(F a, F b) { return {_mm256_mul_ps(a.v[0], b.v[0]), _mm256_mul_ps(a.v[1], b.v[1])}; }
QK_IN F operator/(F a, F b) { return {_mm256_div_ps(a.v[0], b.v[0]), _mm256_div_ps(a.v[1], b.v[1])}; }
QK_IN F fused(F a, F b, F c) { return {_mm256_fmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fmadd_ps(a.v[1], b.v[1], c.v[1])}; }
QK_IN F fused_less(F a, F b, F c) { return {_mm256_fnmadd_ps(a.v[0], b.v[0], c.v[0]), _mm256_fnmadd_ps(a.v[1], b.v[1], c.v[1])}; }
QK_IN M operator<(F a, F b) { return {{_mm256_cmp_ps(a.v[0], b.v[0], _CMP_LT_OQ), _mm256_cmp_ps(a.v[1], b.v[1], _CMP_LT_OQ)}}; }
QK_IN M operator<=(F a, F b) { return {{_mm256_cmp_ps(a.v[0], b.v[0], _CMP_LE_OQ), _mm256_cmp_ps(a.v[1], b.v[1], _CMP_LE_OQ)}}; }
QK_IN M operator&(M a, M b) { return {{_mm256_and_ps(a.m[0], b.m[0]), _mm256_and_ps(a.m[1], b.m[1])}}; }
QK_IN M operator|(M a, M b) { return {{_mm256_or_ps(a.m[0], b.m[0]), _mm256_or_ps(a.m[1], b.m[1])}}; }
QK_IN bool any(M m) { return _mm256_movemask_ps(_mm256_or_ps(m.m[0], m.m[1])) != 0; }
QK_IN M is_number(F a) { return {{_mm256_cmp_ps(a.v[0], a.v[0], _CMP_ORD_Q), _mm256_cmp_ps(a.v[1], a.v[1], _CMP_ORD_Q)}}; }
QK_IN F select(M m, F a, F b) { return {_mm256_blendv_ps(b.v[0], a.v[0], m.m[0]), _mm256_blendv_ps(b.v[1], a.v[1], m.m[1])}; }
// The x86 min and max return their second operand if one is NaN: v goes there.
QK_IN F at_most(F v, F hi) { return {_mm256_min_ps(hi.v[0], v.v[0]), _mm256_min_ps(hi.v[1], v.v[1])}; }
QK_IN F at_least(F v, F lo) { return {_mm256_max_ps(lo.v[0], v.v[0]), _mm256_max_ps(lo.v[1], v.v[1])}; }
QK_IN F masked(F a, int bits) {
  const __m256 m = _mm256_castsi256_ps(_mm256_set1_epi32(bits));
  return {_mm256_and_ps(a.v[0], m), _mm256_and_ps(a.v[1], m)};
}
QK_IN F absolute(F v) { return masked(v, 0x7fffffff); }
QK_IN F pow2_floor(F v) { return masked(v, 0x7f800000); }
QK_IN F mantissa(F v) {
  const __m256 one = _mm256_set1_ps(1.0f);
  const F low = masked(v, 0x7fffff);
  return {_mm256_or_ps(low.v[0], one), _mm256_or_ps(low.v[1], one)};
}
QK_IN F larger(F a, F b) { return {_mm256_max_ps(a.v[0], b.v[0]), _mm256_max_ps(a.v[1], b.v[1])}; }
QK_IN __m256 pow2(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
QK_IN F times_pow2(F y, F n) { return {_mm256_mul_ps(y.v[0], pow2(n.v[0])), _mm256_mul_ps(y.v[1], pow2(n.v[1]))}; }
QK_IN void store(float* p, F a) { _mm256_storeu_ps(p, a.v[0]); _mm256_storeu_ps(p + 8, a.v[1]); }
QK_IN void lanes(F a, float* out) { store(out, a); }
QK_IN F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
QK_IN __m256 lookup8(const float* table, __m256i i) {
  const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), i);
  const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), i);
  return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));  // bit 3 of the index
}
QK_IN F lookup(const float* table, F index) {
  return {lookup8(table, _mm256_cvtps_epi32(index.v[0])), lookup8(table, _mm256_cvtps_epi32(index.v[1]))};
}
QK_IN __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
QK_IN F load(const qk::half* p) { return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))}; }
QK_IN void store(qk::half* p, F a) {
  for (int i = 0; i < 2; i++) _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8 * i), _mm256_cvtps_ph(a.v[i], _MM_FROUND_TO_NEAREST_INT));
}
QK_IN __m256 widen_bfloat(__m128i b) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(b), 16)); }
QK_IN F load(const qk::bfloat* p) { return {widen_bfloat(load128(p)), widen_bfloat(load128(p + 8))}; }
QK_IN void store(qk::bfloat* p, F a) {
  const M number = is_number(a);
  __m256i r[2];
  for (int i = 0; i < 2; i++) {
    const __m256i u = _mm256_castps_si256(a.v[i]), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    r[i] = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    r[i] = _mm256_blendv_epi8(_mm256_set1_epi32(0x7fc0), r[i], _mm256_castps_si256(number.m[i]));
  }
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r[0], r[1]), 0xd8);  // packus works per 128-bit half
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

#else
// ---------------------------------------------------------------- scalar: sixteen floats, left to the compiler
struct M { bool m[kLanes]; };
struct F {
  float v[kLanes];
  F() = default;
  QK_HD F(float a) { for (float& e : v) e = a; }
};
#define QK_LANES(TYPE, EXPRESSION) { TYPE r; for (int i = 0; i < kLanes; i++) r EXPRESSION; return r; }
QK_IN F operator+(F a, F b) QK_LANES(F, .v[i] = a.v[i] + b.v[i])
QK_IN F operator-(F a, F b) QK_LANES(F, .v[i] = a.v[i] - b.v[i])
QK_IN F operator*(F a, F b) QK_LANES(F, .v[i] = a.v[i] * b.v[i])
QK_IN F operator/(F a, F b) QK_LANES(F, .v[i] = a.v[i] / b.v[i])
QK_IN F fused(F a, F b, F c) QK_LANES(F, .v[i] = qk::fused(a.v[i], b.v[i], c.v[i]))
QK_IN F fused_less(F a, F b, F c) QK_LANES(F, .v[i] = qk::fused_less(a.v[i], b.v[i], c.v[i]))
QK_IN M operator<(F a, F b) QK_LANES(M, .m[i] = a.v[i] < b.v[i])
QK_IN M operator<=(F a, F b) QK_LANES(M, .m[i] = a.v[i] <= b.v[i])
QK_IN M operator&(M a, M b) QK_LANES(M, .m[i] = a.m[i] & b.m[i])
QK_IN M operator|(M a, M b) QK_LANES(M, .m[i] = a.m[i] | b.m[i])
QK_IN bool any(M m) { bool found = false; for (bool b : m.m) found |= b; return found; }
QK_IN M is_number(F a) QK_LANES(M, .m[i] = a.v[i] == a.v[i])
QK_IN F select(M m, F a, F b) QK_LANES(F, .v[i] = m.m[i] ? a.v[i] : b.v[i])
QK_IN F at_most(F v, F hi) QK_LANES(F, .v[i] = v.v[i] > hi.v[i] ? hi.v[i] : v.v[i])
QK_IN F at_least(F v, F lo) QK_LANES(F, .v[i] = v.v[i] < lo.v[i] ? lo.v[i] : v.v[i])
QK_IN F absolute(F v) QK_LANES(F, .v[i] = qk::from_bits(qk::bits_of(v.v[i]) & 0x7fffffffu))
QK_IN F pow2_floor(F v) QK_LANES(F, .v[i] = qk::from_bits(qk::bits_of(v.v[i]) & 0x7f800000u))
QK_IN F mantissa(F v) QK_LANES(F, .v[i] = qk::from_bits((qk::bits_of(v.v[i]) & 0x7fffffu) | 0x3f800000u))
QK_IN F larger(F a, F b) QK_LANES(F, .v[i] = qk::larger(a.v[i], b.v[i]))
QK_IN F times_pow2(F y, F n) QK_LANES(F, .v[i] = qk::times_pow2(y.v[i], n.v[i]))
QK_IN F lookup(const float* table, F index) QK_LANES(F, .v[i] = qk::lookup(table, index.v[i]))
QK_IN void lanes(F a, float* out) { memcpy(out, a.v, sizeof a.v); }
template <class T> QK_IN F load(const T* p) QK_LANES(F, .v[i] = qk::to_float(p[i]))
template <class T> QK_IN void store(T* p, F a) { for (int i = 0; i < kLanes; i++) qk::from_float(a.v[i], p + i); }
#endif

QK_IN M operator>(F a, F b) { return b < a; }
QK_IN M operator>=(F a, F b) { return b <= a; }
QK_IN F clamp(F v, F lo, F hi) { return at_most(at_least(v, lo), hi); }
QK_IN F round_even(F v) { return (v + F(12582912.0f)) - F(12582912.0f); }  // see maths.h

// The first n < 16 elements; the rest are 0 and are not touched in memory.
template <class T>
QK_IN F load_part(const T* p, int64_t n) {
  T buffer[kLanes] = {};
  memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}
template <class T>
QK_IN void store_part(T* p, F a, int64_t n) {
  T buffer[kLanes];
  store(buffer, a);
  memcpy(p, buffer, n * sizeof(T));
}
// The first n elements; 0 in the others, whatever is there.
QK_IN F leading(F a, int64_t n) {
  float l[kLanes];
  lanes(a, l);
  for (int64_t i = n < 0 ? 0 : n; i < kLanes; i++) l[i] = 0.0f;
  return load(l);
}

// Sum of the lanes in one fixed order: pairs 8 apart, then 4, 2, 1. In double: partial sums of 8192 terms lose nothing more.
QK_IN double sum(F a) {
  float l[kLanes];
  lanes(a, l);
  double d[8];
  for (int i = 0; i < 8; i++) d[i] = double(l[i]) + double(l[i + 8]);
  for (int width = 4; width; width /= 2)
    for (int i = 0; i < width; i++) d[i] += d[i + width];
  return d[0];
}

}  // namespace
