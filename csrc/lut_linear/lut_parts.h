// Values of x as sums of bfloat16 values, exactly, for the kernels on matrix tiles: the first is the upper half of the bits, the
// next that of what is left. Three hold a float32, two a float16.
#pragma once
#include "lut_words.h"

namespace {

// Sub-block b of a row as its parts: to(b, part, pairs), pair 4 t + i being columns i and i + 4 of octet t.
template <int parts, class To> QK_IN void split_block(F low, F high, int64_t b, To&& to) {
  const auto pair = [](int j) { const int t = j / 4, i = j % 4, at = t / 2 * 32 + t % 2 * 16 + 2 * i + 1; return at | (at + 8) << 16; };
  const __m512i order = _mm512_setr_epi32(pair(0), pair(1), pair(2), pair(3), pair(4), pair(5), pair(6), pair(7), pair(8), pair(9),
                                          pair(10), pair(11), pair(12), pair(13), pair(14), pair(15));
  const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
  QK_UNROLL for (int p = 0; p < parts; p++) {
    const __m512i v = _mm512_castps_si512(low.v), u = _mm512_castps_si512(high.v);
    to(b, p, _mm512_permutex2var_epi16(v, order, u));
    low = low - F(_mm512_castsi512_ps(_mm512_and_si512(v, upper)));
    high = high - F(_mm512_castsi512_ps(_mm512_and_si512(u, upper)));
  }
}

// A row of x; false if it is not for tiles, where a value is not finite or all are below `least` but not all 0. Then it is zeros.
template <int parts, class T, class To> QK_IN bool split_row(const T* x, int64_t K, float least, To&& to) {
  F most(0.0f);
  M finite = is_number(most);
  const auto columns = [&](int64_t k) QK_INLINE_LAMBDA {
    const F v = K - k >= kLanes ? load(x + k) : K > k ? load_part(x + k, K - k) : F(0.0f);
    const F size = absolute(v);
    finite = finite & (size < F(__builtin_inff()));
    most = larger(size, most);
    return v;
  };
  for (int64_t k = 0; k < K; k += kBlock) {
    const F low = columns(k);
    split_block<parts>(low, columns(k + kLanes), k / kBlock, to);
  }
  const bool fits = finite.m == 0xffff && (!any(most > F(0.0f)) || any(most >= F(least)));
  if (!fits)
    for (int64_t b = 0; b * kBlock < K; b++)
      for (int p = 0; p < parts; p++) to(b, p, _mm512_setzero_si512());
  return fits;
}

}  // namespace
