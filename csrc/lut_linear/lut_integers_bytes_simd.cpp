// One row of x times a weight in integers, as lut_integers_simd.cpp has it, by products of bytes, of codes and of digits of x, for
// processors that have none of AVX-512 VNNI: twice as many at a time as of 16 bits. An instruction adds up two of them; sums have 16 bits,
// which is enough for the columns of a tile. A tile is turned only so far that I has two words of eight rows, which meet at the end of a
// segment. Of 16-bit x the lowest digit is multiplied only where it is not 0.
#include "../common/simd.h"
#include "lut_integers.h"

#if QK_ISA
#include "lut_quads.h"

namespace {

using qk::IntegerLevels;
using qk::IntegerRows;

// Turned, asked for h = 0 and 1 of t = 0 to 3 in turn: words 0 and 1 of octet t of eight rows: of row 4 h, of row 4 h + 8, of row 4 h + 1
// and so on. first_left: first words alone are shifted. products: of four codes of each word, below 128, and four digits: of first words,
// of second ones (both_words); sums of two each. widened: both sums of each word, times `by`. added: first and second words, of rows in
// an order that in_order ends.
#if QK_ISA == 512
struct Turned {
  I rows[2][4];
  QK_HD I operator()(const uint8_t* tile, int h, int t) {
    if (h == 0 && t % 2 == 0) four_rows(tile, 0, t / 2, rows), four_rows(tile, 1, t / 2, rows);
    return rows[h][t];
  }
};
QK_IN I first_left(I a, int n) { return {_mm512_sllv_epi32(a.v, _mm512_set1_epi64(n))}; }
QK_IN __m512i both_words(const uint8_t* x) {
  int64_t both;
  memcpy(&both, x, 8);
  return _mm512_set1_epi64(both);
}
QK_IN I products(I codes, __m512i x) { return {_mm512_maddubs_epi16(codes.v, x)}; }
QK_IN I add_halves(I a, I b) { return {_mm512_add_epi16(a.v, b.v)}; }
QK_IN I widened(I halves, int16_t by) { return {_mm512_madd_epi16(halves.v, _mm512_set1_epi16(by))}; }
QK_IN I added(const I (&words)[2]) {
  return I{word_out_of_order(words[0].v, words[1].v, 0)} + I{word_out_of_order(words[0].v, words[1].v, 1)};
}
#else
struct Turned {
  QK_HD I operator()(const uint8_t* tile, int h, int t) const {
    const auto two = [&](int g) QK_INLINE_LAMBDA {
      const __m128i* from = reinterpret_cast<const __m128i*>(tile + g * 64 + t * 16);
      return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(from)), _mm_loadu_si128(from + 4), 1);
    };
    return {{two(4 * h), two(4 * h + 2)}};
  }
};
QK_IN I first_left(I a, int n) {
  const __m256i counts = _mm256_set1_epi64x(n);
  return {{_mm256_sllv_epi32(a.v[0], counts), _mm256_sllv_epi32(a.v[1], counts)}};
}
QK_IN __m256i both_words(const uint8_t* x) {
  int64_t both;
  memcpy(&both, x, 8);
  return _mm256_set1_epi64x(both);
}
QK_IN I products(I codes, __m256i x) { return {{_mm256_maddubs_epi16(codes.v[0], x), _mm256_maddubs_epi16(codes.v[1], x)}}; }
QK_IN I add_halves(I a, I b) { return {{_mm256_add_epi16(a.v[0], b.v[0]), _mm256_add_epi16(a.v[1], b.v[1])}}; }
QK_IN I widened(I halves, int16_t by) {
  const __m256i n = _mm256_set1_epi16(by);
  return {{_mm256_madd_epi16(halves.v[0], n), _mm256_madd_epi16(halves.v[1], n)}};
}
QK_IN I added(const I (&words)[2]) { return {{_mm256_hadd_epi32(words[0].v[0], words[0].v[1]), _mm256_hadd_epi32(words[1].v[0], words[1].v[1])}}; }
QK_IN F in_order(F rows) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return {_mm256_permutevar8x32_ps(_mm256_shuffle_ps(rows.v[0], rows.v[1], 0x88), order),
          _mm256_permutevar8x32_ps(_mm256_shuffle_ps(rows.v[0], rows.v[1], 0xdd), order)};
}
#endif

template <int bits, int digits>
void bytes_by(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  constexpr int kWidth = bits == 3 ? 2 : bits;  // of the plane whose tiles are walked over
  constexpr int kSteps = 4 / kWidth, kColumns = 64 * kSteps, kDigit = 64;
  static_assert(8 * kSteps * 2 * ((1 << bits) - 1) * 128 < 32768, "sums of a tile fit in 16 bits");
  const Plane<kWidth> plane(w.codes, w.K);
  const Plane<1> third(w.codes + (w.N + 15) / 16 * plane.stride, w.K);  // of 3 bits: a tile is as wide as two of the others
  const int32_t factor = levels.factor;
  for (int64_t stripe = begin; stripe < end; stripe++) {
    const uint8_t *from = x.data, *lowest = x.lowest, *tile = plane.first + stripe * plane.stride, *thirds = third.first + stripe * third.stride;
    Place place(w, x);
    F total(0.0f);
    I high[2], low[2];  // [h]: sums of a segment, of digits 3 and 2, and of digits 1 and 0
    const auto clear = [](I (&sum)[2]) { sum[0] = sum[1] = all(0); };
    clear(high), clear(low);
    for (int64_t column = kColumns; column < w.K + kColumns; column += kColumns, tile += 512) {
      [[maybe_unused]] const int word = column / kColumns % 2 == 0;  // of the third bits
      Turned turned;
      [[maybe_unused]] Turned turned_thirds;
      I digit_2[2], digit_1[2];  // [h]: sums of the tile in 16 bits
      [[maybe_unused]] I digit_3[2], digit_0[2];  // of four
      clear(digit_2), clear(digit_1), clear(digit_3), clear(digit_0);
      QK_UNROLL for (int t = 0; t < 4; t++) {
        for (int at = t * 128; at < (t + 1) * 128; at += 64) __builtin_prefetch(tile + at + 2048, 0, 3), __builtin_prefetch(tile + at + 8192, 0, 2);
        if (bits == 3) __builtin_prefetch(thirds + word * 256 + t * 64 + 4096, 0, 3);
        I words[2], third_bits[2];
        QK_UNROLL for (int h = 0; h < 2; h++) {
          words[h] = turned(tile, h, t);
          if constexpr (bits == 3) third_bits[h] = first_left(repeat(turned_thirds(thirds, h, t), word), 2);
        }
        QK_UNROLL for (int s = 0; s < kSteps; s++) {
          I codes[2];
          QK_UNROLL for (int h = 0; h < 2; h++) {
            codes[h] = s ? right(words[h], kWidth * s) : words[h];
            if constexpr (bits == 3) codes[h] = choose(0x33333333u, codes[h], s ? right(third_bits[h], s) : third_bits[h]);
          }
          QK_UNROLL for (int q = 0; q < 2; q++) {
            const uint8_t* const quads = from + s * digits * kDigit + (2 * t + q) * 8;
            const auto x2 = both_words(quads + 2 * kDigit), x1 = both_words(quads + kDigit);
            I own[2];
            QK_UNROLL for (int h = 0; h < 2; h++) {
              own[h] = codes_of<bits>(codes[h], 4 * q);
              digit_2[h] = add_halves(digit_2[h], products(own[h], x2)), digit_1[h] = add_halves(digit_1[h], products(own[h], x1));
              if constexpr (digits == 4) {
                digit_3[h] = add_halves(digit_3[h], products(own[h], both_words(quads + 3 * kDigit)));
                digit_0[h] = add_halves(digit_0[h], products(own[h], both_words(quads)));
              }
            }
            if constexpr (digits == 3)
              if (__builtin_expect(lowest[s] >> (2 * t + q) & 1, 0))
                QK_UNROLL for (int h = 0; h < 2; h++) low[h] = low[h] + widened(products(own[h], both_words(quads)), 1);
          }
        }
      }
      from += kSteps * digits * kDigit, lowest += kSteps;
      for (int h = 0; h < 2; h++) {
        high[h] = high[h] + widened(digit_2[h], 1), low[h] = low[h] + widened(digit_1[h], 256);
        if constexpr (digits == 4) high[h] = high[h] + widened(digit_3[h], 256), low[h] = low[h] + widened(digit_0[h], 1);
      }
      if (bits == 3 && word) thirds += 512;
      if (column < place.stop) continue;
      total = fused(in_order(in_steps(added(high), added(low), factor, *place.segment)), scale_of(w, stripe, place.group), total);
      clear(high), clear(low);
      place.next(w);
    }
    write(w, stripe, total, bias, y, 0);
  }
}

constexpr int kDigits = QK_ISA == 512 ? 4 : 3;  // sums of four take more registers than AVX2 has

template <int digits>
void bytes_of(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  (w.bits == 2 ? bytes_by<2, digits> : w.bits == 3 ? bytes_by<3, digits> : bytes_by<4, digits>)(w, levels, begin, end, x, bias, y);
}
void bytes(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
#if QK_ISA == 512
  if (x.digits == 4) return bytes_of<4>(w, levels, begin, end, x, bias, y);
#endif
  bytes_of<3>(w, levels, begin, end, x, bias, y);
}

}  // namespace
QK_KERNELS(LutIntegersBytes, lut_integers_bytes, {bytes, kDigits})
#endif
