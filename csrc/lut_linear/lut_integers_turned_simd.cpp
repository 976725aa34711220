// x times a weight in integers, with the bits of lut_integers_simd.cpp: one row of it, of 3 bits, and of others for processors on which
// permutations of two registers and products of bits keep others waiting (AMD's Zen 4), or that have no products of bits; and several rows,
// three at a time, or two of float32, which has a digit more. Tiles are turned by shuffles within lanes, for which rows are not in order
// until the end of a segment, and codes are multiplied where they lie in a byte. A tile is turned while the one before it is multiplied.
#include "../common/simd.h"
#include "lut_integers.h"

#if QK_ISA == 512
QK_ALSO("avx512vnni")
#include "lut_quads.h"

namespace {

using qk::IntegerLevels;
using qk::IntegerRows;

// Before further products are added to sum: compilers would gather prefetches, and compute a value where it is used.
template <class V> QK_IN void now(I& sum, V& value) { asm("" : "+v"(sum.v), "+v"(value.v)); }
QK_IN void prefetch_now(I& sum, I& other, const uint8_t* line) {  // as far as was fastest from memory
  asm("prefetcht0 %1" : "+v"(sum.v) : "m"(line[4096]));
  asm("prefetcht1 %1" : "+v"(other.v) : "m"(line[16384]));
}

// Bit 2 of the codes of 3 bits: a tile of it is as wide as two of bits 0 and 1. words[0] is for the tile that is walked over, words[1] for
// the one after it.
struct Third {
  Plane<1> plane;
  const uint8_t *tile = nullptr, *half = nullptr;  // half: those of its bytes that belong to the tile which is walked over
  I words[2][4];
  explicit Third(const Packed& w) : plane(w.codes + (w.N + 15) / 16 * Plane<2>(w.codes, w.K).stride, w.K) {}
  QK_HD void load(int pair) {  // of octets 2 pair and 2 pair + 1
    I rows[2][4];
    four_rows(tile, 0, pair, rows), four_rows(tile, 1, pair, rows);
    for (int t = 2 * pair; t < 2 * pair + 2; t++)
      for (int word = 0; word < 2; word++) words[word][t] = {word_out_of_order(rows[0][t].v, rows[1][t].v, word)};
  }
  QK_HD void begin(int64_t stripe) { tile = half = plane.first + stripe * plane.stride, load(0), load(1); }
};

// The R rows of tile `part` of x.
template <int bits, int digits, int R, bool is_alone>
void turned_by(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y,
               int64_t part) {
  constexpr int kWidth = bits == 3 ? 2 : bits;  // of the plane whose tiles are walked over
  constexpr int kSteps = bits == 8 ? 1 : 4 / kWidth, kBlocks = 8 / kWidth, kColumns = kBlocks * kBlock;
  constexpr int kRow = digits * 32;  // bytes of a row of x and a sub-block
  const Plane<kWidth> plane(w.codes, w.K);
  [[maybe_unused]] Third third(w);
  const int32_t factor = levels.factor;
  const int64_t each = is_alone ? 1 : x.each, height = each * kRow;
  for (int64_t stripe = begin; stripe < end; stripe++) {
    const uint8_t *from = x.bytes_of(part, 0), *lowest = x.lowest_of(part, 0), *tile = plane.first + stripe * plane.stride;
    Place place(w, x);
    place.segment = x.segment(part, 0);
    F total[R];
    for (F& t : total) t = F(0.0f);
    I rows[2][4], sum[R][2][digits];  // sums of codes in the lower half of a byte and in the upper one, or of 8 bits of quads 0 and 1
    const auto clear = [&] { for (auto& of : sum) for (auto& s : of) for (I& d : s) d = all(0); };
    clear();
    eight_rows(tile, rows);
    if constexpr (bits == 3) third.begin(stripe);
    for (int64_t column = kColumns; column < w.K + kColumns; column += kColumns) {
      const uint8_t* const next = column < w.K ? tile + 512 : tile;
      uint32_t some = 0;  // bit 8 b + i: whether digit 0 of quad i of sub-block b is not 0, for which few branches are taken
      if (is_alone) memcpy(&some, lowest, kBlocks);
      else for (int b = 0; b < kBlocks; b++)
        for (int r = 0; r < R; r++) some |= uint32_t(lowest[b * each + r]) << 8 * b;
      [[maybe_unused]] const bool new_third = column % (2 * kColumns) == 0 && column < w.K;
      if (new_third) third.tile += 512;
      const uint8_t* blocks[kBlocks];
      QK_UNROLL for (int b = 0; b < kBlocks; b++) {
        blocks[b] = from + b * height;
        if (!is_alone) asm("" : "+r"(blocks[b]));  // or compilers keep each sum of it and an offset in memory
      }
      QK_UNROLL for (int t = 0; t < 4; t++) {
        QK_UNROLL for (int word = 0; word < 2; word++) {
          prefetch_now(sum[0][0][0], sum[0][0][1], tile + (2 * t + word) * 64);
          if (bits == 3 && word == 0) prefetch_now(sum[0][0][0], sum[0][0][1], third.half + t * 64);
          const I words{word_out_of_order(rows[0][t].v, rows[1][t].v, word)};
          QK_UNROLL for (int s = 0; s < kSteps; s++) {
            const int block = bits == 8 ? 0 : word * kSteps + s;
            I codes = right(words, kWidth * s);
            if constexpr (bits == 3) codes = choose(0x33333333u, codes, block < 3 ? left(third.words[0][t], 2 - block) : right(third.words[0][t], 1));
            QK_UNROLL for (int q = 0; q < 2; q++) {
              if (bits == 8 && q != word) continue;
              const I own = bits == 8 ? codes : masked(codes, 0x01010101u * ((1u << bits % 8) - 1) << 4 * q);
              const uint8_t* const quad = blocks[block] + (2 * t + q) * 4;
              const auto add = [&](int r, int d) QK_INLINE_LAMBDA { sum[r][q][d] = add_products(sum[r][q][d], own, quad + r * kRow + d * 32); };
              QK_UNROLL for (int r = 0; r < R; r++)
                QK_UNROLL for (int d = digits > 3 ? 0 : 1; d < digits; d++) add(r, d);
              if (digits == 3 && __builtin_expect(some >> (8 * block + 2 * t + q) & 1, 0))
                QK_UNROLL for (int r = 0; r < R; r++) add(r, 0);
            }
          }
        }
        if (t % 2) {  // of the next tile, while the rest of this one is multiplied
          for (int h = 0; h < 2; h++) {
            four_rows(next, h, t / 2, rows);
            now(sum[0][0][0], rows[h][t - 1]), now(sum[0][0][1], rows[h][t]);
          }
          if constexpr (bits == 3) {
            if (new_third) third.load(t / 2);
            else third.words[0][t - 1] = third.words[1][t - 1], third.words[0][t] = third.words[1][t];
          }
        }
      }
      tile += 512, third.half += 256, from += kBlocks * height, lowest += kBlocks * each;
      if (column < place.stop) continue;
      for (int r = 0; r < R; r++) {
        if (bits < 8)
          for (int d = 0; d < digits; d++) sum[r][1][d] = right_signed(sum[r][1][d], 4);
        QK_UNROLL for (int d = 0; d < digits; d++) sum[r][0][d] = sum[r][0][d] + sum[r][1][d];
        total[r] = fused(in_order(in_steps(sum[r][0], factor, place.segment[r])), scale_of(w, stripe, place.group), total[r]);
      }
      clear();
      place.next(w), place.segment += each - 1;
    }
    for (int r = 0; r < R; r++) write(w, stripe, total[r], bias, y, part * each + r);
  }
}

template <int bits, int digits>
void turned_of(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  if (x.M == 1) return turned_by<bits, digits, 1, true>(w, levels, begin, end, x, bias, y, 0);
  for (int64_t stripe = begin; stripe < end; stripe++)
    for (int64_t part = 0; part < x.tiles; part++) {
      const auto of = [&](auto by) { by(w, levels, stripe, stripe + 1, x, bias, y, part); };
      switch (lower(x.each, x.M - part * x.each)) {
        case 1: of(turned_by<bits, digits, 1, false>); break;
        case 2: of(turned_by<bits, digits, 2, false>); break;
        case 3: if constexpr (digits == 3) of(turned_by<bits, digits, 3, false>);
      }
    }
}

void turned(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  const auto of = [&](auto three, auto four) { (x.digits == 3 ? three : four)(w, levels, begin, end, x, bias, y); };
  switch (w.bits) {
    case 2: return of(turned_of<2, 3>, turned_of<2, 4>);
    case 3: return of(turned_of<3, 3>, turned_of<3, 4>);
    case 4: return of(turned_of<4, 3>, turned_of<4, 4>);
    case 8: return of(turned_of<8, 3>, turned_of<8, 4>);
  }
}

}  // namespace
QK_NO_MORE
QK_KERNELS(LutIntegersTurned, lut_integers_turned, {turned})
#endif
