// How the bytes of a T16 tile become sixteen-row words, on the instruction set of simd.h. The layout is drawn in
// qkernels/pack.py.
#pragma once
#include "simd.h"

// A loop that becomes straight code, so that its shifts are constants; rolled where sixteen lanes are a loop themselves.
#if QK_ISA
#define QK_UNROLL _Pragma("GCC unroll 8")
#else
#define QK_UNROLL
#endif
#define QK_INLINE_LAMBDA __attribute__((always_inline))

namespace {

// A tile of 512 bytes -> the eight words of each row, lane r being row r; Word: sixteen 32-bit words, in a member v.
// words[4 w + t] = word w of lane 4 g + t: lanes 0 to 7 from the first half-row, 8 to 15 from the second.
#if QK_ISA == 512
// rows[h][t]: words 0 and 1 of lane 4 g + t for g = 4 h to 4 h + 3: of row g, of row g + 8, of row g + 1 and so on.
template <class Word>
QK_IN void four_rows(const uint8_t* tile, int h, int pair, Word (&rows)[2][4]) {  // t = 2 pair and 2 pair + 1
  const auto lines = [&](int g) QK_INLINE_LAMBDA {  // g and g + 1: two lanes of each
    const __m256i* from = reinterpret_cast<const __m256i*>(tile + g * 64 + pair * 32);
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(from)), _mm256_loadu_si256(from + 2), 1);
  };
  const __m512i a = lines(4 * h), b = lines(4 * h + 2);
  rows[h][2 * pair] = {_mm512_shuffle_i32x4(a, b, 0x88)};
  rows[h][2 * pair + 1] = {_mm512_shuffle_i32x4(a, b, 0xdd)};
}
template <class Word>
QK_IN void eight_rows(const uint8_t* tile, Word (&rows)[2][4]) {
  for (int pair = 0; pair < 2; pair++)
    for (int h = 0; h < 2; h++) four_rows(tile, h, pair, rows);
}
// Word w of all rows, from the two words of eight rows and of the eight others.
QK_IN __m512i word_of(__m512i rows, __m512i others, int w) {
  const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 2, 6, 10, 14, 18, 22, 26, 30);
  return _mm512_permutex2var_epi32(rows, w ? _mm512_add_epi32(first, _mm512_set1_epi32(1)) : first, others);
}
// The same with rows out of order, which some processors (AMD's Zen 4) do much faster: element 4 j + 2 i + h is of row 8 h + 4 i + j. In
// a file that defines QK_OUT_OF_ORDER transpose_tile gives them so.
QK_IN __m512i word_out_of_order(__m512i rows, __m512i others, int w) {
  const __m512 a = _mm512_castsi512_ps(rows), b = _mm512_castsi512_ps(others);
  return _mm512_castps_si512(w ? _mm512_shuffle_ps(a, b, 0xdd) : _mm512_shuffle_ps(a, b, 0x88));
}
QK_IN F in_order(F rows) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15), rows.v);
}
QK_IN F out_of_order(F rows) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15), rows.v);
}
template <class Word>
QK_IN void transpose_tile(const uint8_t* tile, Word* words) {
  Word rows[2][4];
  eight_rows(tile, rows);
  for (int t = 0; t < 4; t++)
    for (int w = 0; w < 2; w++)
#ifdef QK_OUT_OF_ORDER
      words[4 * w + t] = {word_out_of_order(rows[0][t].v, rows[1][t].v, w)};
#else
      words[4 * w + t] = {word_of(rows[0][t].v, rows[1][t].v, w)};
#endif
}
#elif QK_ISA == 2
template <class Word>
QK_IN void transpose_tile(const uint8_t* tile, Word* words) {
  for (int t = 0; t < 4; t++) {
    const auto rows = [&](int g) QK_INLINE_LAMBDA {  // g and g + 4
      const __m128i* from = reinterpret_cast<const __m128i*>(tile + g * 64 + t * 16);
      return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(from)), _mm_loadu_si128(from + 16), 1);
    };
    const __m256i a = rows(0), b = rows(1), c = rows(2), d = rows(3);
    const __m256i ab0 = _mm256_unpacklo_epi32(a, b), cd0 = _mm256_unpacklo_epi32(c, d);
    const __m256i ab1 = _mm256_unpackhi_epi32(a, b), cd1 = _mm256_unpackhi_epi32(c, d);
    words[t] = {{_mm256_unpacklo_epi64(ab0, cd0), _mm256_unpacklo_epi64(ab1, cd1)}};
    words[4 + t] = {{_mm256_unpackhi_epi64(ab0, cd0), _mm256_unpackhi_epi64(ab1, cd1)}};
  }
}
#else
template <class Word>
QK_IN void transpose_tile(const uint8_t* tile, Word* words) {
  for (int row = 0; row < 16; row++)
    for (int t = 0; t < 4; t++)
      for (int w = 0; w < 2; w++) {
        const uint8_t* b = tile + row % 8 * 64 + t * 16 + row / 8 * 8 + w * 4;
        words[4 * w + t].v[row] = uint32_t(b[0]) | uint32_t(b[1]) << 8 | uint32_t(b[2]) << 16 | uint32_t(b[3]) << 24;
      }
}
#endif

}  // namespace
