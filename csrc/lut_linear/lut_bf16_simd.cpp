// Bfloat16 activation rows times levels that bfloat16 holds exactly, by the instruction that multiplies pairs of them
// (AVX-512 BF16). A pair is columns i and i + 4 of an octet, whose codes lie 16 bits apart in a word, so one shift and one
// permutation give the levels of 32 products. QK_DOT_PAIRS replaces the instruction where there is none: in a test.
#include "../common/simd.h"
#include "lut_linear.h"

#if QK_ISA == 512
#ifndef QK_DOT_PAIRS
QK_ALSO("avx512bf16")
#endif
#include "lut_words.h"

namespace {

#ifdef QK_DOT_PAIRS
F dot_pairs(F sum, __m512i a, __m512i b);
#else
QK_IN F dot_pairs(F sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum.v, (__m512bh)a, (__m512bh)b); }
#endif

// The upper half of each level; only the lowest bits of an index are the code.
template <int bits> QK_IN __m512i table_of(const Packed& w) {
  uint16_t high[32];
  for (int i = 0; i < 32; i++) high[i] = uint16_t(qk::bits_of(w.levels[i & ((1 << bits) - 1)]) >> 16);
  return _mm512_loadu_si512(high);
}

// As `direct` in lut_rows.h; x: pairs, [K rounded up to 32, / 2][M].
template <int bits, int R, int M>
void direct(const Packed& w, int64_t stripe, int64_t end, const uint32_t* x, int64_t rows, const float* bias, Output y) {
  const __m512i table = table_of<bits>(w);
  Sums<R, M> sums;
  over_columns<bits, R, 4>(w, stripe, end, [&](int64_t k, int i, int r, I code) QK_INLINE_LAMBDA {
    const __m512i levels = _mm512_permutexvar_epi16(code.v, table);
    for (int m = 0; m < M; m++) sums.d[r][m] = dot_pairs(sums.d[r][m], levels, _mm512_set1_epi32(int(x[(k / 2 + i) * M + m])));
  }, [&](int64_t, const F* scale) QK_INLINE_LAMBDA { sums.end_segment(scale); });
  for (int r = 0; r < R && stripe + r < end; r++)
    for (int m = 0; m < lower(M, rows); m++) write(w, stripe + r, sums.total[r][m], bias, y, m);
}

// The same of one stripe and more rows, of which the totals are in memory: so many products hide what it takes to decode.
#define QK_ROWS _Pragma("GCC unroll 32") for (int m = 0; m < M; m++)
template <int bits, int M>
void wide(const Packed& w, int64_t stripe, int64_t end, const uint32_t* x, int64_t rows, const float* bias, Output y) {
  const __m512i table = table_of<bits>(w);
  alignas(64) float total[M][kLanes] = {};
  F d[M];
  QK_ROWS d[m] = F(0.0f);
  over_columns<bits, 1, 4>(w, stripe, end, [&](int64_t k, int i, int, I code) QK_INLINE_LAMBDA {
    const __m512i levels = _mm512_permutexvar_epi16(code.v, table);
    const uint32_t* const pair = x + (k / 2 + i) * M;
    QK_ROWS d[m] = dot_pairs(d[m], levels, _mm512_set1_epi32(int(pair[m])));
  }, [&](int64_t, const F* scale) QK_INLINE_LAMBDA {
    asm("" ::: "memory");  // else gcc has totals in registers, and d in memory
    QK_ROWS store(total[m], fused(d[m], scale[0], load(total[m]))), d[m] = F(0.0f);
  });
  for (int m = 0; m < rows; m++) write(w, stripe, load(total[m]), bias, y, m);
}

using Kernel = void (*)(const Packed&, int64_t, int64_t, const uint32_t*, int64_t, const float*, Output);
template <int bits, int M> Kernel wide_of(int64_t height) {
  if constexpr (M == 4) return nullptr;
  else return height == M ? wide<bits, M> : wide_of<bits, M - 2>(height);
}

template <int bits>
void stripes(const Packed& w, int64_t begin, int64_t end, const uint32_t* x, int64_t rows, int64_t height, const float* bias, Output y) {
  const Kernel kernel = height == 2 ? direct<bits, 4, 2> : height == 4 ? direct<bits, 2, 4> : wide_of<bits, qk::LutPairs::kRows>(height);
  for (const int R = height == 2 ? 4 : height == 4 ? 2 : 1; begin < end; begin += R) kernel(w, begin, end, x, rows, bias, y);
}

void linear(const Packed& w, int64_t begin, int64_t end, const uint32_t* x, int64_t rows, int64_t height, const float* bias, Output y) {
  switch (w.bits) {
    case 1: return stripes<1>(w, begin, end, x, rows, height, bias, y);
    case 2: return stripes<2>(w, begin, end, x, rows, height, bias, y);
    case 3: return stripes<3>(w, begin, end, x, rows, height, bias, y);
    case 4: return stripes<4>(w, begin, end, x, rows, height, bias, y);
  }
}

}  // namespace
#ifndef QK_DOT_PAIRS
QK_NO_MORE
#endif
QK_KERNELS(LutPairs, lut_pairs, {linear})
#else
QK_KERNELS(LutPairs, lut_pairs, {})
#endif
