// Activation rows times a packed weight by AMX-BF16: tiles of 16 x 16 sums. Sixteen rows of the weight times 32 columns are
// one tile, in pairs: columns i and i + 4 of an octet, whose codes lie 16 bits apart in a word, so that one shift and one
// permutation give 32 levels.
//
// Nothing is rounded to bfloat16: a value of x is the sum of up to three of them, its parts, which are rows of their own,
// and so is a level. Products of parts are exact; sums are float32.
//
// The order of every sum: columns 0 to 31 of a block in two chains (see tile_dot), for each part of the levels, the largest
// first; blocks one after another up to the end of a group or a multiple of 128 columns; the parts of x, the smallest first;
// that times the scale is added to the total; then the bias. The same for a row in any batch.
#include "../common/simd.h"
#include "lut_linear.h"

#if QK_ISA == 512
QK_ALSO("avx512vbmi")  // which every processor with these tiles has
#include "lut_bytes.h"
#include "lut_parts.h"
#include "lut_tiles.h"

namespace {

using qk::BfloatLevels;
using qk::AmxRows;

constexpr int kTileBytes = 1024;  // of a tile of the weight

// ---------------------------------------------------------------- x
template <int parts, class T> void split_rows(const AmxRows& rows, int64_t begin, int64_t end, const void* x, float least, char* fits) {
  for (int64_t m = begin; m < end; m++)
    fits[m] = split_row<parts>(static_cast<const T*>(x) + m * rows.K, rows.K, least, [&](int64_t b, int p, __m512i pairs) QK_INLINE_LAMBDA {
      _mm512_storeu_si512(rows.row(m) + b * rows.height() * 32 + p * 32, pairs);
    });
}

void split(const AmxRows& rows, int64_t begin, int64_t end, const void* x, int dtype, float least, char* fits) {
  if (dtype == 0) split_rows<3, float>(rows, begin, end, x, least, fits);
  else if (dtype == 1) split_rows<2, qk::half>(rows, begin, end, x, least, fits);
  else split_rows<1, qk::bfloat>(rows, begin, end, x, least, fits);
}

// ---------------------------------------------------------------- the weight
// Pairs of levels by pairs of codes: up to 4 bits by tables of bfloat16.
template <int bits, class Levels, int parts> struct Pairs {
  __m512i table[parts];
  explicit Pairs(const Packed&, const BfloatLevels& levels) {
    for (int p = 0; p < parts; p++) {
      uint16_t all[32];  // only the lowest bits of an index are the code
      for (int i = 0; i < 32; i++) all[i] = levels.part[p][i & ((1 << bits) - 1)];
      table[p] = _mm512_loadu_si512(all);
    }
  }
  // Sub-block `first + s` of a unit: to [part][16 pairs][16 rows]
  QK_HD void block(const I (&words)[1][Codes<bits>::kWords], int first, int s, uint8_t* to) const {
    for (int t = 0; t < 4; t++)
      Codes<bits>::template octet<4>(words, first, s, t, [&](int i, int, I code) QK_INLINE_LAMBDA {
        for (int p = 0; p < parts; p++)
          _mm512_store_si512(to + p * kTileBytes + (4 * t + i) * 64, _mm512_permutexvar_epi16(code.v, table[p]));
      });
  }
};
template <class Levels, int parts> struct Pairs<8, Levels, parts> {  // 8 bits, evenly spaced: as floats first
  Levels table;
  explicit Pairs(const Packed& w, const BfloatLevels&) : table(w) {}
  QK_HD void block(const I (&words)[1][Codes<8>::kWords], int, int, uint8_t* to) const {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
    for (int t = 0; t < 4; t++)
      QK_UNROLL for (int i = 0; i < 4; i++) {
        F low = table(right(words[0][t], 8 * i)), high = table(right(words[0][4 + t], 8 * i));
        for (int p = 0; p < parts; p++) {
          const __m512i a = _mm512_castps_si512(low.v), b = _mm512_castps_si512(high.v);
          _mm512_store_si512(to + p * kTileBytes + (4 * t + i) * 64, _mm512_ternarylogic_epi32(upper, b, _mm512_srli_epi32(a, 16), 0xca));
          low = low - F(_mm512_castsi512_ps(_mm512_and_si512(a, upper)));
          high = high - F(_mm512_castsi512_ps(_mm512_and_si512(b, upper)));
        }
      }
  }
};

template <int parts> struct Pairs<8, Table<8>, parts> {
  ByteTable table[parts][2];
  explicit Pairs(const Packed&, const BfloatLevels& levels) {
    uint8_t all[256];
    for (int p = 0; p < parts; p++)
      for (int b = 0; b < 2; b++) {
        for (int i = 0; i < 256; i++) all[i] = uint8_t(levels.part[p][i] >> 8 * b);
        table[p][b] = ByteTable(all);
      }
  }
  QK_HD void block(const I (&words)[1][Codes<8>::kWords], int, int, uint8_t* to) const {
    for (int p = 0; p < parts; p++)
      for (int t = 0; t < 4; t++) {
        const I first = words[0][t], second = words[0][4 + t];
        const I a = table[p][0](first), b = table[p][1](first), c = table[p][0](second), d = table[p][1](second);
        uint8_t* const pairs = to + p * kTileBytes + 4 * t * 64;
        store_words(pairs, gathered<0>(a, b, c, d)), store_words(pairs + 64, gathered<1>(a, b, c, d));
        store_words(pairs + 128, gathered<2>(a, b, c, d)), store_words(pairs + 192, gathered<3>(a, b, c, d));
      }
  }
};

template <int bits, class Levels, int parts> struct Products : Usual {
  static constexpr int kBits = bits, kBlockBytes = parts * kTileBytes;
  static constexpr int kBlocks = parts == 1 ? 4 : 2;  // so that what is decoded leaves L1 to x
  struct Note {};
  const Pairs<bits, Levels, parts> table;
  const AmxRows& x;

  static constexpr int depth() { return 1; }
  static constexpr int x_bytes() { return 64; }
  static constexpr int64_t at(int b, int r) { return (b * kStripes + r) * kBlockBytes; }
  Note note(int64_t, int64_t) const { return {}; }

  template <int n, int r> QK_HD static void multiply_stripe(const uint8_t* weights) {
    QK_UNROLL for (int p = 0; p < parts; p++) {
      tile_load<6 + r>(weights + p * kTileBytes);
      tile_dot<r, 4, 6 + r>();
      if constexpr (n == 2) tile_dot<r + 2, 5, 6 + r>();
    }
  }
  template <int n> QK_HD static void multiply(const uint8_t* weights) {
    multiply_stripe<n, 0>(weights);
    multiply_stripe<n, 1>(weights + at(0, 1));
  }

  template <int x_parts> QK_HD void add_rows(const float* sum, F scale, float* total) const {
    for (int64_t j = 0; j < x.each; j++, sum += x_parts * kLanes, total += kLanes) {
      F all = load(sum + (x_parts - 1) * kLanes);
      QK_UNROLL for (int p = x_parts - 2; p >= 0; p--) all = all + load(sum + p * kLanes);
      store(total, fused(all, scale, load(total)));
    }
  }
  QK_HD void add(const uint32_t (*sums)[16][16], int which, F scale, Note, float* total) const {
    const float* sum = reinterpret_cast<const float*>(sums[which]);
    if (x.parts == 1) add_rows<1>(sum, scale, total);
    else if (x.parts == 2) add_rows<2>(sum, scale, total);
    else add_rows<3>(sum, scale, total);
  }
};

template <int bits, class Levels, int parts>
void stripes(const Packed& w, const BfloatLevels& levels, int64_t begin, int64_t end, const AmxRows& x, const float* bias, Output y,
             uint8_t* scratch) {
  using Form = Products<bits, Levels, parts>;
  static_assert(2 * Decoder<Form>::kBytes <= qk::LutAmx::kBuffer);
  const Form form{{}, Pairs<bits, Levels, parts>(w, levels), x};
  float* const totals = reinterpret_cast<float*>(scratch + qk::LutAmx::kBuffer);
  all_stripes(w, form, begin, end, bias, y, scratch, totals, reinterpret_cast<uint32_t*>(totals + x.tiles * x.each * 2 * kLanes));
}

void linear(const Packed& w, const BfloatLevels& levels, int64_t begin, int64_t end, const AmxRows& x, const float* bias, Output y,
            uint8_t* scratch) {
  for_kind(w, [&](auto kind) {
    using L = typename decltype(kind)::Levels;
    switch (levels.parts) {
      case 1: return stripes<kind.bits, L, 1>(w, levels, begin, end, x, bias, y, scratch);
      case 2: return stripes<kind.bits, L, 2>(w, levels, begin, end, x, bias, y, scratch);
      case 3: return stripes<kind.bits, L, 3>(w, levels, begin, end, x, bias, y, scratch);
    }
  });
}

}  // namespace
QK_NO_MORE
QK_KERNELS(LutAmx, lut_amx, {split, linear})
#else
QK_KERNELS(LutAmx, lut_amx, {})
#endif
