// lut_linear_int.h on the instruction set of simd.h. A vector holds four bytes of each of the sixteen rows of a stripe, a quad of
// codes turned to weights; they meet four bytes of x that all rows share, and the four products are added to the row's sum. So
// nothing is summed across lanes. Integers: the bits are the same on each.
#pragma once
#include "lut_linear_int_bytes.h"

namespace {

// ---------------------------------------------------------------- quads of products
// sum += kQuads quads of weights times those of x. Signed x has unsigned weights. Without VNNI's instruction, which a file says by
// QK_WITHOUT_VNNI, AVX-512 does as AVX2.
#if QK_ISA == 512 && !defined(QK_WITHOUT_VNNI)
constexpr int kMost = 8, kDirect = 4, kQuads = 1;
template <bool x_signed, bool wide> QK_IN void dot(I& sum, const I* w, const uint8_t* x) {
  if constexpr (x_signed) {
    sum = add_products(sum, *w, x);
  } else {
    int32_t four;
    memcpy(&four, x, 4);
    sum.v = _mm512_dpbusd_epi32(sum.v, _mm512_set1_epi32(four), w->v);
  }
}
#elif QK_ISA
#if QK_ISA == 512
constexpr int kMost = 8, kDirect = 4, kQuads = 4, kHalves = 1;
using Half = __m512i;  // of I
QK_IN Half& half(I& a, int) { return a.v; }
#define QK_MM(name) _mm512_##name
#else
constexpr int kMost = 4, kDirect = 2, kQuads = 4, kHalves = 2;
using Half = __m256i;
QK_IN Half& half(I& a, int h) { return a.v[h]; }
#define QK_MM(name) _mm256_##name
#endif
template <bool is_signed> QK_IN Half odd_bytes(Half v) { return is_signed ? QK_MM(srai_epi16)(v, 8) : QK_MM(srli_epi16)(v, 8); }
template <bool is_signed> QK_IN Half even_bytes(Half v) { return odd_bytes<is_signed>(QK_MM(slli_epi16)(v, 8)); }
// wide: of 8 bits, whose products are of more than 16 bits; else a sum of sixteen is not.
template <bool x_signed, bool wide> QK_IN void dot(I& sum, const I* w, const uint8_t* x) {
  const auto add = [&](int h, Half a, Half b) QK_INLINE_LAMBDA { half(sum, h) = QK_MM(add_epi32)(half(sum, h), QK_MM(madd_epi16)(a, b)); };
  I part = all(0);
  for (int q = 0; q < kQuads; q++) {
    int32_t four;
    memcpy(&four, x + 4 * q, 4);
    const Half shared = QK_MM(set1_epi32)(four);
    I quad = w[q];
    for (int h = 0; h < kHalves; h++) {
      const Half v = half(quad, h);
      if constexpr (wide) {
        add(h, even_bytes<!x_signed>(v), even_bytes<x_signed>(shared)), add(h, odd_bytes<!x_signed>(v), odd_bytes<x_signed>(shared));
      } else {
        half(part, h) = QK_MM(add_epi16)(half(part, h), x_signed ? QK_MM(maddubs_epi16)(v, shared) : QK_MM(maddubs_epi16)(shared, v));
      }
    }
  }
  for (int h = 0; h < kHalves && !wide; h++) add(h, half(part, h), QK_MM(set1_epi16)(1));
}
#undef QK_MM
#else
constexpr int kMost = 1, kDirect = 0, kQuads = 1;
template <bool x_signed, bool wide> QK_IN void dot(I& sum, const I* w, const uint8_t* x) {
  for (int i = 0; i < kLanes; i++)
    for (int j = 0; j < 4; j++) {
      const uint8_t v = uint8_t(w->v[i] >> 8 * j);
      sum.v[i] += uint32_t(x_signed ? int(v) * int8_t(x[j]) : int8_t(v) * int(x[j]));
    }
}
#endif
// kMost: rows of x whose sums are in registers; kDirect: up to which they meet weights that have not been in memory.
template <int bits, int tables> constexpr bool kWide = kQuads == 4 && bits == 8 && tables == 0;  // see dot

// Sums of M rows of x.
template <bool x_signed, bool wide, int M> struct Sums8 {
  static constexpr int kChains = QK_ISA == 512 && kQuads == 1 && M < 4 ? 4 / M : 1;  // so that one addition need not wait for the other
  I sum[M][kChains];
  QK_HD void clear() {
    QK_UNROLL for (int m = 0; m < M; m++)
      QK_UNROLL for (int c = 0; c < kChains; c++) sum[m][c] = all(0);
  }
  // kQuads quads of a sub-block, from i on; x: of the first row.
  QK_HD void add(const I* quads, int i, const uint8_t* x) {
    QK_UNROLL for (int m = 0; m < M; m++) dot<x_signed, wide>(sum[m][i % kChains], quads, x + m * 32 + i * 4);
  }
  QK_HD I operator[](int m) const {
    I all = sum[m][0];
    QK_UNROLL for (int c = 1; c < kChains; c++) all = all + sum[m][c];
    return all;
  }
};

// ---------------------------------------------------------------- stripes
// The sub-blocks of a stripe, one after another: each(words, first, s, block), as Codes has it; done(block, scale) where a segment
// ends before `block`.
template <int n, int i = 0, class Body> QK_IN void unrolled(Body&& body) {  // a loop of one turn is no loop
  if constexpr (i < n) body(i), unrolled<n, i + 1>(body);
}
template <int bits, class Each, class Done> QK_IN void over_blocks(const Packed& w, int64_t stripe, Each&& each, Done&& done) {
  using C = Codes<bits>;
  const C codes(w);
  const int64_t blocks = (w.K + kBlock - 1) / kBlock;
  I words[1][C::kWords];
  Segment segment(w, ByteRows::kSegment);
  for (int64_t start = 0; start < blocks; start += C::kBlocks) {
    codes.load(stripe, start, words[0]);
    QK_UNROLL for (int first = 0; first < C::kBlocks; first += C::kSteps) {
      unrolled<C::kSteps>([&](int s) QK_INLINE_LAMBDA {
        const int64_t block = start + first + s;
        if (block >= blocks) return;
        for (int t = 0; t < 4; t++) codes.prefetch_far(stripe, block, t);
        each(words, first, s, block);
        if ((block + 1) * kBlock < segment.end) return;
        done(block + 1, segment.scale(w, stripe));
        segment.next(w);
      });
    }
  }
}

// Few rows of x, one tile of M.
template <int bits, int tables, bool x_signed, bool wide, int M>
void direct(const Packed& w, const ByteLevels& levels, int64_t begin, int64_t end, const ByteRows& x, const float* bias, float* y) {
  const Bytes<bits, tables> bytes(levels);
  const Units units(levels);
  for (int64_t stripe = begin; stripe < end; stripe++) {
    Sums8<x_signed, wide, M> sums[2];
    F total[M];
    const int32_t* more = x.more;
    const uint8_t* from = x.data;
    QK_UNROLL for (int m = 0; m < M; m++) total[m] = F(0.0f);
    const auto clear = [&]() QK_INLINE_LAMBDA { sums[0].clear(), sums[1].clear(); };
    clear();
    over_blocks<bits>(w, stripe, [&](const auto& words, int first, int s, int64_t) QK_INLINE_LAMBDA {
      I quads[2][kQuads];
      bytes.quads(bytes, words, first, s, [&](int i, int odd, I quad) QK_INLINE_LAMBDA {
        quads[odd][i % kQuads] = quad;
        if (i % kQuads == kQuads - 1) sums[odd].add(quads[odd], i / kQuads * kQuads, from);
      });
      from += M * 32;
    }, [&](int64_t, F scale) QK_INLINE_LAMBDA {
      QK_UNROLL for (int m = 0; m < M; m++) {
        const I odd = sums[1][m];
        total[m] = units.add(sums[0][m], tables == 2 ? &odd : nullptr, more[m], scale, total[m]);
      }
      more += M;
      clear();
    });
    QK_UNROLL for (int m = 0; m < M; m++) finish(w, stripe, total[m] * F(x.step[m]), bias, y + m * w.N);
  }
}

// A segment of weights, [even, odd][kSegment / 32][8][16 rows], times a tile of M rows of x; += totals [M][16].
constexpr int64_t kOdd = ByteRows::kSegment * kStripe;
template <bool x_signed, bool wide, int tables, int M>
void multiply(const uint8_t* weights, int64_t blocks, const uint8_t* x, const Units& all_units, const int32_t* more, F scale, float* totals) {
  const Units units = all_units;  // in registers: what is stored could lie anywhere
  constexpr int kParts = tables == 2 ? 2 : 1, kTogether = QK_ISA == 512 ? kParts : 1;  // as many sums as registers hold
  Sums8<x_signed, wide, M> sums[kParts];
  for (auto& part : sums) part.clear();
  for (int first = 0; first < kParts; first += kTogether)
    for (int64_t b = 0; b < blocks; b++)
      QK_UNROLL for (int i = 0; i < 8; i += kQuads)
        for (int part = first; part < first + kTogether; part++) {
          I quads[kQuads];
          for (int j = 0; j < kQuads; j++) quads[j] = load_words(weights + part * kOdd + b * 512 + (i + j) * 64);
          sums[part].add(quads, i, x + b * M * 32);
        }
  QK_UNROLL for (int m = 0; m < M; m++) {
    const I odd = sums[kParts - 1][m];
    store(totals + m * kLanes, units.add(sums[0][m], tables == 2 ? &odd : nullptr, more[m], scale, load(totals + m * kLanes)));
  }
}

using Multiply = void (*)(const uint8_t*, int64_t, const uint8_t*, const Units&, const int32_t*, F, float*);
template <bool x_signed, bool wide, int tables, int M> Multiply multiply_of(int64_t rows) {
  if constexpr (M == 1) return multiply<x_signed, wide, tables, 1>;
  else return rows == M ? multiply<x_signed, wide, tables, M> : multiply_of<x_signed, wide, tables, M - 1>(rows);
}

// More rows share what becomes of a stripe's codes, segment by segment.
template <int bits, int tables, bool wide>
void shared(const Packed& w, const ByteLevels& levels, int64_t begin, int64_t end, const ByteRows& x, const float* bias, float* y,
            uint8_t* scratch) {
  constexpr int kTables = tables == 2 ? 2 : 0;  // of which multiply knows
  const Bytes<bits, tables> bytes(levels);
  const Units units(levels);
  const Multiply of_tile = levels.x_signed ? multiply_of<true, wide, kTables, kMost>(x.each) : multiply_of<false, wide, kTables, kMost>(x.each);
  float* const totals = reinterpret_cast<float*>(scratch + 2 * kOdd);  // [tiles][each][16]
  for (int64_t stripe = begin; stripe < end; stripe++) {
    memset(totals, 0, x.tiles * x.each * kLanes * sizeof(float));
    int64_t from = 0, number = 0;  // of the segment: its first sub-block, and how many were before
    over_blocks<bits>(w, stripe, [&](const auto& words, int first, int s, int64_t block) QK_INLINE_LAMBDA {
      uint8_t* to = scratch + (block - from) * 512;
      bytes.quads(bytes, words, first, s, [&](int i, int odd, I quad) QK_INLINE_LAMBDA { store_words(to + odd * kOdd + i * 64, quad); });
    }, [&](int64_t block, F scale) QK_INLINE_LAMBDA {
      for (int64_t i = 0; i < x.tiles; i++)
        of_tile(scratch, block - from, x.bytes_of(i, from), units, x.more_of(i, number), scale, totals + i * x.each * kLanes);
      from = block, number++;
    });
    for (int64_t m = 0; m < x.M; m++) finish(w, stripe, load(totals + m * kLanes) * F(x.step[m]), bias, y + m * w.N);
  }
}

}  // namespace
