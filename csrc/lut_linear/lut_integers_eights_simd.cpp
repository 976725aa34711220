// One row of x times a weight in integers, as lut_integers_simd.cpp has it, with fewer instructions: a tile of codes is turned only so
// far that a register has two words of eight rows. Products of both words add up apart, each with its own columns of x, and meet at
// the end of a segment. Codes that are not in the lowest bits of their bytes come there by products of bits, so that all have the same sums.
#include "../common/simd.h"
#include "lut_integers.h"

#if QK_ISA == 512
QK_ALSO("avx512vnni,gfni")
#define QK_GFNI 1
#include "lut_quads.h"

namespace {

using qk::IntegerLevels;
using qk::IntegerRows;

// sum + the products of four bytes of each word, which are unsigned, and the signed ones at x: of first words, then of second ones.
QK_IN I add_pairs(I sum, I codes, const uint8_t* x) {
  int64_t both;
  memcpy(&both, x, 8);
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(codes.v), "v"(_mm512_set1_epi64(both)));  // as add_products, x in a register
  return sum;
}

// Between two products: compilers gather all prefetches of a turn before them.
template <bool to_l1> QK_IN void prefetch_after(I& sum, const uint8_t* p) {
  if constexpr (to_l1) asm("prefetcht0 %1" : "+v"(sum.v) : "m"(*p));
  else asm("prefetcht1 %1" : "+v"(sum.v) : "m"(*p));
}

template <int bits, int digits>
void eights_by(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  constexpr int kColumns = 256 / bits, kSteps = bits == 8 ? 1 : 4 / bits, kLines = 2 / kSteps;
  constexpr int kDigit = bits == 8 ? 32 : 64;  // bytes
  const Plane<bits> plane(w.codes, w.K);
  const int32_t factor = levels.factor;
  for (int64_t stripe = begin; stripe < end; stripe++) {
    const uint8_t *from = x.data, *lowest = x.lowest, *tile = plane.first + stripe * plane.stride;
    Place place(w, x);
    F total(0.0f);
    I sum[2][2][digits];  // [every other quad][h]: more products at a time
    const auto clear = [&] { for (auto& s : sum) for (auto& h : s) for (I& d : h) d = all(0); };
    clear();
    for (int64_t column = kColumns; column < w.K + kColumns; column += kColumns, tile += 512) {
      I rows[2][4];
      eight_rows(tile, rows);
      QK_UNROLL for (int s = 0; s < kSteps; s++, from += digits * kDigit) {
        // bit i: whether digit 0 of quad i is not 0, of either word, for which few branches are taken; of 8 bits that was no faster
        const uint32_t some = digits > 3 || bits == 8 ? 255 : *lowest++;
        QK_UNROLL for (int t = 0; t < 4; t++) {
          QK_UNROLL for (int i = 0; i < kLines; i++) {
            const uint8_t* line = tile + ((s * 4 + t) * kLines + i) * 64;
            prefetch_after<true>(sum[0][0][0], line + 2048);
            prefetch_after<false>(sum[0][0][1], line + 8192);
          }
          const auto add = [&](auto& to, int shift, int pair) QK_INLINE_LAMBDA {
            const uint8_t* const quads = from + pair * 8;
            QK_UNROLL for (int h = 0; h < 2; h++) {
              const I codes = bits == 8 ? rows[h][t] : codes_of<bits>(rows[h][t], shift);
              if (__builtin_expect(some >> pair & 1, 0)) to[h][0] = add_pairs(to[h][0], codes, quads);
              QK_UNROLL for (int d = 1; d < digits; d++) to[h][d] = add_pairs(to[h][d], codes, quads + d * kDigit);
            }
          };
          if constexpr (bits == 8) {
            add(sum[t % 2], 0, t);
          } else {
            QK_UNROLL for (int q = 0; q < 2; q++) add(sum[q], 4 * q + bits * s, 2 * t + q);
          }
        }
      }
      if (column < place.stop) continue;
      I digit[digits];
      QK_UNROLL for (int d = 0; d < digits; d++) {
        const I first = sum[0][0][d] + sum[1][0][d], second = sum[0][1][d] + sum[1][1][d];
        digit[d] = I{word_of(first.v, second.v, 0)} + I{word_of(first.v, second.v, 1)};
      }
      total = fused(in_steps(digit, factor, *place.segment), scale_of(w, stripe, place.group), total);
      clear();
      place.next(w);
    }
    write(w, stripe, total, bias, y, 0);
  }
}

void eights(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  const auto of = [&](auto three, auto four) { (x.digits == 3 ? three : four)(w, levels, begin, end, x, bias, y); };
  switch (w.bits) {
    case 2: return of(eights_by<2, 3>, eights_by<2, 4>);
    case 4: return of(eights_by<4, 3>, eights_by<4, 4>);
    case 8: return of(eights_by<8, 3>, eights_by<8, 4>);
  }
}

}  // namespace
QK_NO_MORE
QK_KERNELS(LutIntegersEights, lut_integers_eights, {eights})
#endif
