// Bfloat16 activation rows times levels that bfloat16 holds exactly, by the instruction that multiplies pairs of them
// (AVX-512 BF16). A pair is columns i and i + 4 of an octet, whose codes lie 16 bits apart in a word, so one shift and one
// permutation give the levels of 32 products. QK_DOT_PAIRS replaces the instruction where there is none: in a test.
#include "../common/simd.h"
#include "lut_linear.h"

#if QK_ISA == 512
#ifndef QK_DOT_PAIRS
QK_ALSO("avx512bf16")
#endif
#define QK_OUT_OF_ORDER  // rows of sums are, until they are written
#include "lut_alone.h"

namespace {

#ifdef QK_DOT_PAIRS
F dot_pairs(F sum, __m512i a, __m512i b);
#else
QK_IN F dot_pairs(F sum, __m512i a, __m512i b) { return _mm512_dpbf16_ps(sum.v, (__m512bh)a, (__m512bh)b); }
#endif

// The upper halves of levels by pairs of codes; only the lowest bits of an index are the code.
template <int bits> struct Pairs {
  __m512i table;
  QK_HD explicit Pairs(const Packed& w) {
    uint16_t high[32];
    for (int i = 0; i < 32; i++) high[i] = uint16_t(qk::bits_of(w.levels[i & ((1 << bits) - 1)]) >> 16);
    table = _mm512_loadu_si512(high);
  }
  QK_HD __m512i operator()(I code) const { return _mm512_permutexvar_epi16(code.v, table); }
};

template <> struct Pairs<8> {  // evenly spaced
  Uniform table;
  QK_HD explicit Pairs(const Packed& w) : table(w) {}
  QK_HD __m512i operator()(TwoCodes codes) const {
    const F first = table(right(codes.first, codes.shift)), second = table(right(codes.second, codes.shift));
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(int(0xffff0000)), _mm512_castps_si512(second.v),
                                     _mm512_srli_epi32(_mm512_castps_si512(first.v), 16), 0xca);
  }
};

// As `direct` in lut_rows.h; x: pairs, [K rounded up to 32, / 2][M].
template <int bits, int R, int M>
void direct(const Packed& w, int64_t stripe, int64_t end, const uint32_t* x, int64_t rows, const float* bias, Output y) {
  const Pairs<bits> table(w);
  Sums<R, M> sums;
  over_columns<bits, R, 4>(w, stripe, end, [&](int64_t k, int i, int r, auto code) QK_INLINE_LAMBDA {
    const __m512i levels = table(code);
    for (int m = 0; m < M; m++) sums.d[r][m] = dot_pairs(sums.d[r][m], levels, _mm512_set1_epi32(int(x[(k / 2 + i) * M + m])));
  }, [&](int64_t, F* scale) QK_INLINE_LAMBDA {
    for (int r = 0; r < R; r++) scale[r] = out_of_order(scale[r]);
    sums.end_segment(scale);
  });
  for (int r = 0; r < R && stripe + r < end; r++)
    for (int m = 0; m < lower(M, rows); m++) write(w, stripe + r, in_order(sums.total[r][m]), bias, y, m);
}

// The same of one stripe and more rows, of which the totals are in memory: so many products hide what it takes to decode.
#define QK_ROWS _Pragma("GCC unroll 32") for (int m = 0; m < M; m++)
template <int bits, int M>
void wide(const Packed& w, int64_t stripe, int64_t end, const uint32_t* x, int64_t rows, const float* bias, Output y) {
  const Pairs<bits> table(w);
  alignas(64) float total[M][kLanes] = {};
  F d[M];
  QK_ROWS d[m] = F(0.0f);
  over_columns<bits, 1, 4>(w, stripe, end, [&](int64_t k, int i, int, auto code) QK_INLINE_LAMBDA {
    const __m512i levels = table(code);
    const uint32_t* const pair = x + (k / 2 + i) * M;
    QK_ROWS d[m] = dot_pairs(d[m], levels, _mm512_set1_epi32(int(pair[m])));
  }, [&](int64_t, const F* scale) QK_INLINE_LAMBDA {
    asm("" ::: "memory");  // else gcc has totals in registers, and d in memory
    const F own = out_of_order(scale[0]);
    QK_ROWS store(total[m], fused(d[m], own, load(total[m]))), d[m] = F(0.0f);
  });
  for (int m = 0; m < rows; m++) write(w, stripe, in_order(load(total[m])), bias, y, m);
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
    case 8: return stripes<8>(w, begin, end, x, rows, height, bias, y);
  }
}

// ---------------------------------------------------------------- one row, 2 to 4 bits: as lut_alone.h has it, but by pairs
template <int bits> QK_IN F add_product(F sum, const Pairs<bits>& table, Code code, const float* x) {
  return dot_pairs(sum, table(code), _mm512_loadu_si512(x));
}
template <int bits> struct AlonePairs : Alone<bits, Pairs<bits>, 4> {
  using Base = Alone<bits, Pairs<bits>, 4>;
  static void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
    const auto upper = [&](int64_t k) { return k < w.K ? qk::bits_of(x[k]) >> 16 : 0; };
    for (int64_t u = 0; u < Base::units(w.K); u++)
      for (int i = 0; i < 4; i++)
        for (int e = 0; e < kLanes; e++, to++) {
          const int64_t k = Base::column(u, e % 2) + e / 4 * 8 + i;
          const uint32_t pair = upper(k) | upper(k + 4) << 16;
          memcpy(to, &pair, 4);
        }
    Base::spread_groups(w, groups);
  }
};
template <class Body> QK_IN void for_pairs(const Packed& w, Body&& body) {
  switch (w.bits) {
    case 2: return body(AlonePairs<2>{});
    case 3: return body(AlonePairs<3>{});
    case 4: return body(AlonePairs<4>{});
  }
}
void room(const Packed& w, int64_t* floats, int64_t* numbers) {
  for_pairs(w, [&](auto way) QK_INLINE_LAMBDA { way.room(w, floats, numbers); });
}
void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
  for_pairs(w, [&](auto way) QK_INLINE_LAMBDA { way.spread(w, x, to, groups); });
}
void linear_alone(const Packed& w, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y) {
  for_pairs(w, [&](auto way) QK_INLINE_LAMBDA { way.linear(w, begin, end, x, groups, bias, y); });
}

}  // namespace
#ifndef QK_DOT_PAIRS
QK_NO_MORE
#endif
QK_KERNELS(LutPairs, lut_pairs, {linear, {room, spread, linear_alone}})
#else
QK_KERNELS(LutPairs, lut_pairs, {})
#endif
