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

// Before further products are added to sum: compilers would gather prefetches, and turn a tile, at the beginning of a turn.
template <class V> QK_IN void now(I& sum, V& value) { asm("" : "+v"(sum.v), "+v"(value.v)); }
QK_IN void prefetch_now(I& sum, I& other, const uint8_t* line) {
  asm("prefetcht0 %1" : "+v"(sum.v) : "m"(line[2048]));
  asm("prefetcht1 %1" : "+v"(other.v) : "m"(line[8192]));
}

template <int bits, int digits>
void turned_by(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  constexpr int kSteps = bits == 8 ? 1 : 4 / bits, kColumns = bits == 8 ? 32 : 256 / bits;
  constexpr int kPlaces = bits == 8 ? 2 : 8 / bits, kApart = bits == 8 ? 0 : bits;  // of codes in a byte, bits; each has its own sums
  constexpr int kTurns = 8 * kSteps;  // of a tile
  const Plane<bits> plane(w.codes, w.K);
  const int32_t factor = levels.factor;
  for (int64_t stripe = begin; stripe < end; stripe++) {
    const uint8_t *from = x.data, *tile = plane.first + stripe * plane.stride;
    Place place(w, x);
    F total(0.0f);
    I sum[kPlaces][digits], rows[2][4];
    const auto clear = [&] { for (auto& s : sum) for (I& d : s) d = all(0); };
    clear();
    eight_rows(tile, rows);
    for (int64_t column = kColumns; column < w.K + kColumns; column += kColumns) {
      const uint8_t* const following = column < w.K ? tile + 512 : tile;
      I next[2][4];
      QK_UNROLL for (int b = 0; b < 2 * kSteps; b++) {  // sub-blocks, but of 8 bits words of the one that there is
        QK_UNROLL for (int t = 0; t < 4; t++) {
          const int turn = b * 4 + t;
          if (turn % kSteps == 0) prefetch_now(sum[0][0], sum[0][1], tile + turn / kSteps * 64);
          const I codes = words_of(rows[0][t], rows[1][t], b / kSteps);
          const auto add = [&](int place, I at, const uint8_t* quads) QK_INLINE_LAMBDA {
            QK_UNROLL for (int d = 0; d < digits; d++) sum[place][d] = add_products(sum[place][d], at, quads + d * 32);
          };
          if constexpr (bits == 8) {
            add(b, codes, from + (2 * t + b) * 4);
          } else {
            QK_UNROLL for (int q = 0; q < 2; q++) {
              const int shift = 4 * q + bits * (b % kSteps);
              add(shift / bits, masked(codes, 0x01010101u * ((1u << bits) - 1) << shift), from + b * digits * 32 + (2 * t + q) * 4);
            }
          }
          if (turn % (kTurns / 4) == 0) {
            const int h = turn / (kTurns / 4) % 2, pair = turn / (kTurns / 2);
            four_rows(following, h, pair, next);
            now(sum[0][0], next[h][2 * pair]), now(sum[0][1], next[h][2 * pair + 1]);
          }
        }
      }
      tile += 512, from += kColumns / 32 * digits * 32;
      memcpy(&rows, &next, sizeof rows);
      if (column < place.stop) continue;
      I digit[digits];
      QK_UNROLL for (int d = 0; d < digits; d++) {
        digit[d] = sum[0][d];
        QK_UNROLL for (int p = 1; p < kPlaces; p++) digit[d] = digit[d] + right_signed(sum[p][d], p * kApart);
      }
      total = fused(in_order(in_steps(digit, factor, *place.segment)), scale_of(w, stripe, place.group), total);
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
