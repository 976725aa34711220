// lut_linear_int.h on the instruction set of simd.h. A vector holds a word of codes of each of the sixteen rows of a stripe, which
// two byte look-ups turn to four weights of each row; they meet four activations that all rows share, and the four products are
// added to the row's sum. So nothing is summed across lanes. QK_VNNI: with the instruction that does the last two steps at
// once. Integers: the bits are the same on each.
#pragma once
#include "../common/t16_simd.h"
#include "lut_linear_int.h"

namespace {

using qk::PostKernels;
using qk::PostWeight;

constexpr int kRows = 16, kAhead = 2048;

// ---------------------------------------------------------------- sixteen words: of four bytes each, or int32
#if QK_ISA == 512
constexpr int kMost = 8;  // rows of x whose sums are in registers
struct W { __m512i v; };
QK_IN W low(W a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
QK_IN W high(W a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
QK_IN W all(int32_t v) { return {_mm512_set1_epi32(v)}; }
QK_IN W operator+(W a, W b) { return {_mm512_add_epi32(a.v, b.v)}; }
QK_IN W operator-(W a, W b) { return {_mm512_sub_epi32(a.v, b.v)}; }
QK_IN W operator*(W a, W b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
QK_IN F to_float(W a) { return _mm512_cvtepi32_ps(a.v); }
template <int bits> struct Lookup {
  __m512i first, second;
  explicit Lookup(const int8_t* t) : first(whole(t)), second(whole(t + 16)) {}
  QK_HD static __m512i whole(const int8_t* t) { return _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(t))); }
  QK_HD W operator()(W code) const {
    const __m512i one = _mm512_shuffle_epi8(first, code.v);
    if constexpr (bits == 4) return {one};
    return {_mm512_mask_blend_epi8(_mm512_test_epi8_mask(code.v, _mm512_set1_epi8(16)), one, _mm512_shuffle_epi8(second, code.v))};
  }
};
// sum + the products of unsigned and signed bytes, four to a lane.
QK_IN W dot(W sum, W u, W s) {
#ifdef QK_VNNI
  return {_mm512_dpbusd_epi32(sum.v, u.v, s.v)};
#else
  return {_mm512_add_epi32(sum.v, _mm512_madd_epi16(_mm512_maddubs_epi16(u.v, s.v), _mm512_set1_epi16(1)))};
#endif
}
#elif QK_ISA == 2
constexpr int kMost = 2;
struct W { __m256i v[2]; };
#define QK_HALVES(EXPRESSION) { W r; for (int i = 0; i < 2; i++) r.v[i] = EXPRESSION; return r; }
QK_IN W low(W a) QK_HALVES(_mm256_and_si256(a.v[i], _mm256_set1_epi8(15)))
QK_IN W high(W a) QK_HALVES(_mm256_and_si256(_mm256_srli_epi16(a.v[i], 4), _mm256_set1_epi8(15)))
QK_IN W all(int32_t v) { return {{_mm256_set1_epi32(v), _mm256_set1_epi32(v)}}; }
QK_IN W operator+(W a, W b) QK_HALVES(_mm256_add_epi32(a.v[i], b.v[i]))
QK_IN W operator-(W a, W b) QK_HALVES(_mm256_sub_epi32(a.v[i], b.v[i]))
QK_IN W operator*(W a, W b) QK_HALVES(_mm256_mullo_epi32(a.v[i], b.v[i]))
QK_IN F to_float(W a) { return {_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}; }
template <int bits> struct Lookup {
  __m256i first, second;
  explicit Lookup(const int8_t* t) : first(whole(t)), second(whole(t + 16)) {}
  QK_HD static __m256i whole(const int8_t* t) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t))); }
  QK_HD __m256i half(__m256i code) const {
    const __m256i one = _mm256_shuffle_epi8(first, code);
    if constexpr (bits == 4) return one;
    return _mm256_blendv_epi8(one, _mm256_shuffle_epi8(second, code), _mm256_slli_epi16(code, 3));  // bit 4 of a code below 32
  }
  QK_HD W operator()(W code) const QK_HALVES(half(code.v[i]))
};
QK_IN W dot(W sum, W u, W s)
    QK_HALVES(_mm256_add_epi32(sum.v[i], _mm256_madd_epi16(_mm256_maddubs_epi16(u.v[i], s.v[i]), _mm256_set1_epi16(1))))
#else
constexpr int kMost = 1;
struct W { uint32_t v[kLanes]; };  // wraps around as the others do
QK_IN W low(W a) QK_LANES(W, .v[i] = a.v[i] & 0x0f0f0f0fu)
QK_IN W high(W a) QK_LANES(W, .v[i] = a.v[i] >> 4 & 0x0f0f0f0fu)
QK_IN W all(int32_t v) QK_LANES(W, .v[i] = uint32_t(v))
QK_IN W operator+(W a, W b) QK_LANES(W, .v[i] = a.v[i] + b.v[i])
QK_IN W operator-(W a, W b) QK_LANES(W, .v[i] = a.v[i] - b.v[i])
QK_IN W operator*(W a, W b) QK_LANES(W, .v[i] = a.v[i] * b.v[i])
QK_IN F to_float(W a) QK_LANES(F, .v[i] = float(int32_t(a.v[i])))
QK_IN uint32_t byte(uint32_t word, int i) { return word >> 8 * i & 255; }
template <int bits> struct Lookup {
  const int8_t* t;
  explicit Lookup(const int8_t* table) : t(table) {}
  QK_HD uint32_t one(uint32_t code) const {
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) r |= uint32_t(uint8_t(t[byte(code, i) & 31])) << 8 * i;
    return r;
  }
  QK_HD W operator()(W code) const QK_LANES(W, .v[i] = one(code.v[i]))
};
QK_IN uint32_t dot(uint32_t sum, uint32_t u, uint32_t s) {
  for (int i = 0; i < 4; i++) sum += uint32_t(int(byte(u, i)) * int8_t(byte(s, i)));
  return sum;
}
QK_IN W dot(W sum, W u, W s) QK_LANES(W, .v[i] = dot(sum.v[i], u.v[i], s.v[i]))
#endif

template <bool v> struct Constant { static constexpr bool value = v; };

// Sums of one stripe for M rows of x: those of a segment in `even` and `odd`, twice for few rows, so that one addition need not
// wait for the other.
template <int bits, bool is_signed, bool has_odd, int M>
void stripe_rows(const PostWeight& w, int64_t stripe, const uint8_t* x, const int32_t* offset, const float* step, const float* bias,
                 float* y) {
  constexpr int kBlocks = bits == 4 ? 2 : 1, kTwice = M <= 2 ? 2 : 1;  // blocks of a tile
  const Lookup<bits> even_of(w.even), odd_of(w.odd);
  const int64_t blocks = w.blocks(), segments = qk::post_segments(w), of_group = segments / w.G;
  const uint8_t* codes = w.codes + stripe * ((blocks + kBlocks - 1) / kBlocks) * 512;
  W even[kTwice][M], odd[kTwice][M], words[2][4];
  F total[M];
  const auto clear = [&]() __attribute__((always_inline)) {
    QK_UNROLL for (int i = 0; i < kTwice; i++)
      QK_UNROLL for (int m = 0; m < M; m++) even[i][m] = odd[i][m] = all(0);
  };
  clear();
  QK_UNROLL for (int m = 0; m < M; m++) total[m] = F(0.0f);
  int64_t group = 0, segment = 0, end = w.group < PostKernels::kSegment ? w.group : PostKernels::kSegment;
  for (int64_t first = 0; first < blocks; first += kBlocks) {
    const uint8_t* tile = codes + first / kBlocks * 512;
    for (int line = 0; line < 512; line += 64) __builtin_prefetch(tile + kAhead + line);  // stripes follow one another
    transpose_tile(tile, words[0]);
    QK_UNROLL for (int half = 0; half < kBlocks; half++) {
      const int64_t block = first + half;
      if (block >= blocks) break;
      const uint8_t* from = x + block * 32;
      QK_UNROLL for (int i = 0; i < 8; i++) {
        const int t = i / 2, part = i % 2;
        const W code = bits == 8 ? words[part][t] : part ? high(words[half][t]) : low(words[half][t]);
        const W e = even_of(code), o = has_odd ? odd_of(code) : e;
        QK_UNROLL for (int m = 0; m < M; m++) {
          int32_t four;
          memcpy(&four, from + m * blocks * 32 + i * 4, 4);
          const W shared = all(four);
          W &to_even = even[part % kTwice][m], &to_odd = odd[part % kTwice][m];
          to_even = is_signed ? dot(to_even, e, shared) : dot(to_even, shared, e);
          if (has_odd) to_odd = is_signed ? dot(to_odd, o, shared) : dot(to_odd, shared, o);
        }
      }
      if ((block + 1) * 32 >= end) {
        const F scale = load(w.scale + (stripe * w.G + group) * kRows);
        QK_UNROLL for (int m = 0; m < M; m++) {
          W e = even[0][m], o = odd[0][m];
          if (kTwice == 2) e = e + even[kTwice - 1][m], o = o + odd[kTwice - 1][m];
          total[m] = total[m] + to_float(e * all(w.a) + o * all(w.b) - all(offset[m * segments + segment])) * scale;
        }
        clear();
        segment++;
        if (segment % of_group == 0) group++;
        const int64_t group_end = (group + 1) * w.group;
        end = end + PostKernels::kSegment < group_end ? end + PostKernels::kSegment : group_end;
      }
    }
  }
  const int64_t n = stripe * kRows, rows = w.N - n < kRows ? w.N - n : kRows;
  QK_UNROLL for (int m = 0; m < M; m++) {
    F value = total[m] * F(step[m]);
    if (bias) value = value + (rows == kRows ? load(bias + n) : load_part(bias + n, rows));
    if (rows == kRows) store(y + m * w.N + n, value);
    else store_part(y + m * w.N + n, value, rows);
  }
}

// Rows of x in turns of M, or as many as are left.
template <int bits, bool is_signed, bool has_odd, int M>
void rows_of(const PostWeight& w, int64_t stripe, const uint8_t* x, int64_t rows, const int32_t* offset, const float* step,
             const float* bias, float* y) {
  int64_t m = 0;
  for (; m + M <= rows; m += M)
    stripe_rows<bits, is_signed, has_odd, M>(w, stripe, x + m * w.blocks() * 32, offset + m * qk::post_segments(w), step + m, bias, y + m * w.N);
  if constexpr (M > 1)
    if (m < rows)
      rows_of<bits, is_signed, has_odd, M / 2>(w, stripe, x + m * w.blocks() * 32, rows - m, offset + m * qk::post_segments(w), step + m, bias,
                                      y + m * w.N);
}

void linear(const PostWeight& w, int64_t begin, int64_t end, const uint8_t* x, int64_t M, const int32_t* offset, const float* step,
            const float* bias, float* y) {
  const auto run = [&](auto kernel) {
    for (int64_t stripe = begin; stripe < end; stripe++) kernel(w, stripe, x, M, offset, step, bias, y);
  };
  const auto with = [&](auto has_odd) {
    if (w.bits == 4) w.is_signed ? run(rows_of<4, true, has_odd.value, kMost>) : run(rows_of<4, false, has_odd.value, kMost>);
    else w.is_signed ? run(rows_of<8, true, has_odd.value, kMost>) : run(rows_of<8, false, has_odd.value, kMost>);
  };
  w.b ? with(Constant<true>()) : with(Constant<false>());
}

}  // namespace
