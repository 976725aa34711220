// Few bfloat16 activation rows times levels that bfloat16 holds exactly, by the instruction that multiplies pairs of them
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

// As `direct` in lut_linear_simd.cpp; x: pairs, [K rounded up to 32, / 2][M].
template <int bits, int R, int M>
void pairs(const Packed& w, int64_t stripe, int64_t end, const uint32_t* x, const float* bias, Output y) {
  uint16_t high[32];  // the upper half of each level; only the lowest bits of an index are the code
  for (int i = 0; i < 32; i++) high[i] = uint16_t(qk::bits_of(w.levels[i & ((1 << bits) - 1)]) >> 16);
  const __m512i table = _mm512_loadu_si512(high);
  Sums<R, M> sums;
  over_columns<bits, R, 4>(w, stripe, end, [&](int64_t k, int i, int r, I code) QK_INLINE_LAMBDA {
    const __m512i levels = _mm512_permutexvar_epi16(code.v, table);
    for (int m = 0; m < M; m++) sums.d[r][m] = dot_pairs(sums.d[r][m], levels, _mm512_set1_epi32(int(x[(k / 2 + i) * M + m])));
  }, [&](int64_t, const F* scale) QK_INLINE_LAMBDA { sums.end_segment(scale); });
  for (int r = 0; r < R && stripe + r < end; r++)
    for (int m = 0; m < M; m++) write(w, stripe + r, sums.total[r][m], bias, y, m);
}

template <int bits>
void pairs_stripes(const Packed& w, int64_t begin, int64_t end, const uint32_t* x, int64_t M, const float* bias, Output y) {
  const auto each = [&](int R, auto kernel) {
    for (; begin < end; begin += R) kernel(w, begin, end, x, bias, y);
  };
  switch (M) {
    case 2: return each(4, pairs<bits, 4, 2>);
    case 3: return each(2, pairs<bits, 2, 3>);
    case 4: return each(2, pairs<bits, 2, 4>);
  }
}

void linear(const Packed& w, int64_t begin, int64_t end, const uint32_t* x, int64_t M, const float* bias, Output y) {
  switch (w.bits) {
    case 1: return pairs_stripes<1>(w, begin, end, x, M, bias, y);
    case 2: return pairs_stripes<2>(w, begin, end, x, M, bias, y);
    case 3: return pairs_stripes<3>(w, begin, end, x, M, bias, y);
    case 4: return pairs_stripes<4>(w, begin, end, x, M, bias, y);
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
