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
  QK_HD I operator()(I code) const { return {_mm512_permutexvar_epi16(code.v, table)}; }
};

template <> struct Pairs<8> {  // evenly spaced
  Uniform table;
  QK_HD explicit Pairs(const Packed& w) : table(w) {}
  QK_HD I operator()(TwoCodes codes) const {
    const F first = table(right(codes.first, codes.shift)), second = table(right(codes.second, codes.shift));
    return choose(0xffff0000u, {_mm512_castps_si512(second.v)}, right({_mm512_castps_si512(first.v)}, 16));
  }
};

// As `direct` in lut_rows.h; x: pairs, [K rounded up to 32, / 2][M].
template <int bits, int R, int M>
void direct(const Packed& w, int64_t stripe, int64_t end, const uint32_t* x, int64_t rows, const float* bias, Output y) {
  const Pairs<bits> table(w);
  Sums<R, M> sums;
  over_columns<bits, R, 4>(w, stripe, end, [&](int64_t k, int i, int r, auto code) QK_INLINE_LAMBDA {
    const I levels = table(code);
    for (int m = 0; m < M; m++) sums.d[r][m] = dot_pairs(sums.d[r][m], levels.v, _mm512_set1_epi32(int(x[(k / 2 + i) * M + m])));
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
    const I levels = table(code);
    const uint32_t* const pair = x + (k / 2 + i) * M;
    QK_ROWS d[m] = dot_pairs(d[m], levels.v, _mm512_set1_epi32(int(pair[m])));
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
QK_IN F product_added(F sum, I levels, const float* x) { return dot_pairs(sum, levels.v, _mm512_loadu_si512(x)); }
template <int bits> struct AlonePairs : Alone<bits, Pairs<bits>, 4> {
  using Base = Alone<bits, Pairs<bits>, 4>;
  static void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
    const auto part = [&](int64_t k) QK_INLINE_LAMBDA {
      const F v = w.K - k >= kLanes ? load(x + k) : w.K > k ? load_part(x + k, w.K - k) : F(0.0f);
      return _mm512_castps_si512(v.v);
    };
    short of_upper[32], of_pairs[32];
    for (int i = 0; i < 32; i++) of_upper[i] = short(2 * i + 1), of_pairs[i] = short(i / 2 % 2 * 32 + i / 8 * 8 + i % 2 * 4);
    const __m512i upper = _mm512_loadu_si512(of_upper), pairs = _mm512_loadu_si512(of_pairs);
    const auto columns = [&](int64_t k) QK_INLINE_LAMBDA { return _mm512_permutex2var_epi16(part(k), upper, part(k + kLanes)); };
    for (int64_t u = 0; u < Base::units(w.K); u++) {
      const __m512i word[] = {columns(Base::column(u, 0)), columns(Base::column(u, 1))};
      for (int i = 0; i < 4; i++, to += kLanes)  // element e is column i of octet e / 4 of word e % 2, and four further on
        _mm512_storeu_si512(to, _mm512_permutex2var_epi16(word[0], _mm512_add_epi16(pairs, _mm512_set1_epi16(short(i))), word[1]));
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
