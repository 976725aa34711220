// One row of x times a weight in integers, as lut_integers_simd.cpp has it, for processors on which permutations of two registers and
// products of bits keep others waiting (AMD's Zen 4): tiles are turned by shuffles within lanes, for which rows are not in order until
// the end of a segment, and codes are multiplied where they lie in a byte. A tile is turned while the one before it is multiplied.
#include "../common/simd.h"
#include "lut_integers.h"

#if QK_ISA == 512
QK_ALSO("avx512vnni")
#include "lut_quads.h"

namespace {

using qk::IntegerLevels;
using qk::IntegerRows;

// Words w of all rows, from the words of rows g and g + 8 for g < 4, and of the others (see eight_rows): element 4 j + 2 i + h is of row
// 8 h + 4 i + j.
QK_IN I words_of(I rows, I others, int w) {
  const __m512 a = _mm512_castsi512_ps(rows.v), b = _mm512_castsi512_ps(others.v);
  return {_mm512_castps_si512(w ? _mm512_shuffle_ps(a, b, 0xdd) : _mm512_shuffle_ps(a, b, 0x88))};
}
QK_IN F in_order(F rows) {
  return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 1, 5, 9, 13, 3, 7, 11, 15), rows.v);
}

// Before further products are added to sum: compilers would gather prefetches, and compute a value where it is used.
template <class V> QK_IN void now(I& sum, V& value) { asm("" : "+v"(sum.v), "+v"(value.v)); }
QK_IN void prefetch_now(I& sum, I& other, const uint8_t* line) {
  asm("prefetcht0 %1" : "+v"(sum.v) : "m"(line[4096]));
  asm("prefetcht1 %1" : "+v"(other.v) : "m"(line[16384]));
}

template <int bits, int digits>
void turned_by(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  constexpr int kSteps = bits == 8 ? 1 : 4 / bits, kBlocks = bits == 8 ? 1 : 8 / bits;  // sub-blocks of a tile
  const Plane<bits> plane(w.codes, w.K);
  const int32_t factor = levels.factor;
  for (int64_t stripe = begin; stripe < end; stripe++) {
    const uint8_t *from = x.data, *lowest = x.lowest, *tile = plane.first + stripe * plane.stride;
    Place place(w, x);
    F total(0.0f);
    I rows[2][4], sum[2][digits];  // sums of codes in the lower half of a byte and in the upper one, or of 8 bits of quads 0 and 1
    const auto clear = [&] { for (auto& s : sum) for (I& d : s) d = all(0); };
    clear();
    eight_rows(tile, rows);
    for (int64_t column = kBlocks * kBlock; column < w.K + kBlocks * kBlock; column += kBlocks * kBlock) {
      const uint8_t* const next = column < w.K ? tile + 512 : tile;
      uint32_t some = 0;  // bit 8 b + i: whether digit 0 of quad i of sub-block b is not 0, for which few branches are taken
      memcpy(&some, lowest, kBlocks);
      QK_UNROLL for (int t = 0; t < 4; t++) {
        QK_UNROLL for (int word = 0; word < 2; word++) {
          prefetch_now(sum[0][0], sum[0][1], tile + (2 * t + word) * 64);
          const I words = words_of(rows[0][t], rows[1][t], word);
          QK_UNROLL for (int s = 0; s < kSteps; s++) {
            const int block = bits == 8 ? 0 : word * kSteps + s;
            const I codes = right(words, bits * s);
            QK_UNROLL for (int q = 0; q < 2; q++) {
              if (bits == 8 && q != word) continue;
              const I own = bits == 8 ? codes : masked(codes, 0x01010101u * ((1u << bits % 8) - 1) << 4 * q);
              const uint8_t* const quad = from + block * digits * 32 + (2 * t + q) * 4;
              if (digits > 3 || __builtin_expect(some >> (8 * block + 2 * t + q) & 1, 0)) sum[q][0] = add_products(sum[q][0], own, quad);
              QK_UNROLL for (int d = 1; d < digits; d++) sum[q][d] = add_products(sum[q][d], own, quad + d * 32);
            }
          }
        }
        if (t % 2)  // of the next tile, while the rest of this one is multiplied
          for (int h = 0; h < 2; h++) {
            four_rows(next, h, t / 2, rows);
            now(sum[0][0], rows[h][t - 1]), now(sum[0][1], rows[h][t]);
          }
      }
      tile += 512, from += kBlocks * digits * 32, lowest += kBlocks;
      if (column < place.stop) continue;
      if (bits < 8)
        for (int d = 0; d < digits; d++) sum[1][d] = right_signed(sum[1][d], 4);
      QK_UNROLL for (int d = 0; d < digits; d++) sum[0][d] = sum[0][d] + sum[1][d];
      total = fused(in_order(in_steps(sum[0], factor, *place.segment)), scale_of(w, stripe, place.group), total);
      clear();
      place.next(w);
    }
    write(w, stripe, total, bias, y, 0);
  }
}

void turned(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  const auto of = [&](auto three, auto four) { (x.digits == 3 ? three : four)(w, levels, begin, end, x, bias, y); };
  switch (w.bits) {
    case 2: return of(turned_by<2, 3>, turned_by<2, 4>);
    case 4: return of(turned_by<4, 3>, turned_by<4, 4>);
    case 8: return of(turned_by<8, 3>, turned_by<8, 4>);
  }
}

}  // namespace
QK_NO_MORE
QK_KERNELS(LutIntegersTurned, lut_integers_turned, {turned})
#endif
