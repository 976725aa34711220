// Sixteen rows of packed codes at once, on the instruction set of simd.h: how the bytes of a T16 tile become sixteen-row
// words, and words levels. Lane r is row r of the stripe everywhere.
#pragma once
#include "../common/t16_simd.h"
#include "lut_linear.h"

namespace {

using qk::kStripe;
using qk::Output;
using qk::Packed;

constexpr int kSegment = 128;
constexpr int kBlock = 32;  // columns of a sub-block

// ---------------------------------------------------------------- sixteen 32-bit words
#if QK_ISA == 512
struct I { __m512i v; };
QK_IN I right(I a, int n) { return {_mm512_srli_epi32(a.v, n)}; }
QK_IN I left(I a, int n) { return {_mm512_slli_epi32(a.v, n)}; }
QK_IN I right_signed(I a, int n) { return {_mm512_srai_epi32(a.v, n)}; }
QK_IN I choose(uint32_t mask, I a, I b) { return {_mm512_ternarylogic_epi32(_mm512_set1_epi32(int(mask)), a.v, b.v, 0xca)}; }
QK_IN I masked(I a, uint32_t mask) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(int(mask)))}; }
QK_IN I operator^(I a, I b) { return {_mm512_xor_si512(a.v, b.v)}; }
QK_IN I operator+(I a, I b) { return {_mm512_add_epi32(a.v, b.v)}; }
QK_IN I operator*(I a, I b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
QK_IN I all(int32_t n) { return {_mm512_set1_epi32(n)}; }
QK_IN F to_float(I a) { return _mm512_maskz_cvtepi32_ps(0xffff, a.v); }  // gcc 12 warns of the plain one
QK_IN I load_words(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
QK_IN void store_words(uint8_t* p, I a) { _mm512_store_si512(p, a.v); }
QK_IN I repeat(I a, int word) { return {word ? _mm512_shuffle_epi32(a.v, _MM_PERM_DDBB) : _mm512_shuffle_epi32(a.v, _MM_PERM_CCAA)}; }
QK_IN I left_by(I a, int even, int odd) {
  return {_mm512_rolv_epi32(a.v, _mm512_set1_epi64(int64_t(even & 31) | int64_t(odd & 31) << 32))};
}
QK_IN F of_row(F scale, F other, int g) {
  const __m512i both = _mm512_setr_epi32(0, 16, 8, 24, 0, 16, 8, 24, 0, 16, 8, 24, 0, 16, 8, 24);
  return _mm512_permutex2var_ps(scale.v, _mm512_add_epi32(both, _mm512_set1_epi32(g)), other.v);
}
#elif QK_ISA == 2
struct I { __m256i v[2]; };
QK_IN I right(I a, int n) { return {{_mm256_srli_epi32(a.v[0], n), _mm256_srli_epi32(a.v[1], n)}}; }
QK_IN I left(I a, int n) { return {{_mm256_slli_epi32(a.v[0], n), _mm256_slli_epi32(a.v[1], n)}}; }
QK_IN I right_signed(I a, int n) { return {{_mm256_srai_epi32(a.v[0], n), _mm256_srai_epi32(a.v[1], n)}}; }
QK_IN I choose(uint32_t mask, I a, I b) {
  const __m256i m = _mm256_set1_epi32(int(mask));
  return {{_mm256_or_si256(_mm256_and_si256(m, a.v[0]), _mm256_andnot_si256(m, b.v[0])),
           _mm256_or_si256(_mm256_and_si256(m, a.v[1]), _mm256_andnot_si256(m, b.v[1]))}};
}
QK_IN I masked(I a, uint32_t mask) {
  const __m256i m = _mm256_set1_epi32(int(mask));
  return {{_mm256_and_si256(a.v[0], m), _mm256_and_si256(a.v[1], m)}};
}
QK_IN I operator^(I a, I b) { return {{_mm256_xor_si256(a.v[0], b.v[0]), _mm256_xor_si256(a.v[1], b.v[1])}}; }
QK_IN I operator+(I a, I b) { return {{_mm256_add_epi32(a.v[0], b.v[0]), _mm256_add_epi32(a.v[1], b.v[1])}}; }
QK_IN I operator*(I a, I b) { return {{_mm256_mullo_epi32(a.v[0], b.v[0]), _mm256_mullo_epi32(a.v[1], b.v[1])}}; }
QK_IN I all(int32_t n) { return {{_mm256_set1_epi32(n), _mm256_set1_epi32(n)}}; }
QK_IN F to_float(I a) { return {_mm256_cvtepi32_ps(a.v[0]), _mm256_cvtepi32_ps(a.v[1])}; }
QK_IN I load_words(const uint8_t* p) {
  const __m256i* from = reinterpret_cast<const __m256i*>(p);
  return {{_mm256_loadu_si256(from), _mm256_loadu_si256(from + 1)}};
}
QK_IN void store_words(uint8_t* p, I a) {
  __m256i* to = reinterpret_cast<__m256i*>(p);
  _mm256_store_si256(to, a.v[0]), _mm256_store_si256(to + 1, a.v[1]);
}
QK_IN I repeat(I a, int word) {
  if (word) return {{_mm256_shuffle_epi32(a.v[0], 0xf5), _mm256_shuffle_epi32(a.v[1], 0xf5)}};
  return {{_mm256_shuffle_epi32(a.v[0], 0xa0), _mm256_shuffle_epi32(a.v[1], 0xa0)}};
}
QK_IN I left_by(I a, int even, int odd) {  // a count that is not below 32 gives 0
  const auto counts = [](int e, int o) { return _mm256_set1_epi64x(int64_t(uint32_t(e)) | int64_t(o) << 32); };
  const __m256i l = counts(even, odd), r = counts(-even, -odd);
  const auto half = [&](__m256i v) { return _mm256_or_si256(_mm256_sllv_epi32(v, l), _mm256_srlv_epi32(v, r)); };
  return {{half(a.v[0]), half(a.v[1])}};
}
#else
struct I { uint32_t v[kLanes]; };
QK_IN I right(I a, int n) QK_LANES(I, .v[i] = a.v[i] >> n)
QK_IN I left(I a, int n) QK_LANES(I, .v[i] = a.v[i] << n)
QK_IN I right_signed(I a, int n) QK_LANES(I, .v[i] = uint32_t(int32_t(a.v[i]) >> n))
QK_IN I choose(uint32_t mask, I a, I b) QK_LANES(I, .v[i] = (a.v[i] & mask) | (b.v[i] & ~mask))
QK_IN I masked(I a, uint32_t mask) QK_LANES(I, .v[i] = a.v[i] & mask)
QK_IN I operator^(I a, I b) QK_LANES(I, .v[i] = a.v[i] ^ b.v[i])
QK_IN I operator+(I a, I b) QK_LANES(I, .v[i] = a.v[i] + b.v[i])
QK_IN I operator*(I a, I b) QK_LANES(I, .v[i] = a.v[i] * b.v[i])
QK_IN I all(int32_t n) QK_LANES(I, .v[i] = uint32_t(n))
QK_IN F to_float(I a) QK_LANES(F, .v[i] = float(int32_t(a.v[i])))
QK_IN I load_words(const uint8_t* p)
    QK_LANES(I, .v[i] = uint32_t(p[4 * i]) | uint32_t(p[4 * i + 1]) << 8 | uint32_t(p[4 * i + 2]) << 16 | uint32_t(p[4 * i + 3]) << 24)
QK_IN void store_words(uint8_t* p, I a) {
  for (int i = 0; i < kLanes; i++)
    for (int j = 0; j < 4; j++) p[4 * i + j] = uint8_t(a.v[i] >> 8 * j);
}
QK_IN I repeat(I a, int word) QK_LANES(I, .v[i] = a.v[i / 2 * 2 + word])
QK_IN uint32_t left_by(uint32_t a, int n) { return n < 0 ? a >> -n : a << n; }
QK_IN I left_by(I a, int even, int odd) QK_LANES(I, .v[i] = left_by(a.v[i], i % 2 ? odd : even))
QK_IN F of_row(F scale, F other, int g) QK_LANES(F, .v[i] = (i % 2 ? other : scale).v[g + i / 2 % 2 * 8])
#endif
// What some are: sixteen words from memory, and to memory at a multiple of 64; of each two words the first or second one, twice;
// words at even and odd places shifted left, or right by what is negative (what is shifted out may come in again); and for a line
// (see Lines) of rows g and g + 8, the scale of each element's row, from `scale` for the first words and `other` for the second ones: of_row,
// which AVX2 has no use for.

// Lanes 0 to 7: a >> n, a >> (n + 4), ...; lanes 8 to 15 the same of b. And the bytes of 8 + 8.
#if QK_ISA == 512
QK_IN I nibbles(uint32_t a, uint32_t b, int n) {
  const __m512i by = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
  const __m512i both = _mm512_mask_set1_epi32(_mm512_set1_epi32(int(a)), 0xff00, int(b));
  return {_mm512_srlv_epi32(both, _mm512_add_epi32(by, _mm512_set1_epi32(n)))};
}
QK_IN I bytes(uint64_t a, uint64_t b) { return {_mm512_cvtepu8_epi32(_mm_set_epi64x(int64_t(b), int64_t(a)))}; }
#elif QK_ISA == 2
QK_IN I nibbles(uint32_t a, uint32_t b, int n) {
  const __m256i by = _mm256_add_epi32(_mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), _mm256_set1_epi32(n));
  return {{_mm256_srlv_epi32(_mm256_set1_epi32(int(a)), by), _mm256_srlv_epi32(_mm256_set1_epi32(int(b)), by)}};
}
QK_IN I bytes(uint64_t a, uint64_t b) {
  return {{_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(a))), _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(b)))}};
}
#else
QK_IN I nibbles(uint32_t a, uint32_t b, int n) QK_LANES(I, .v[i] = (i < 8 ? a : b) >> (i % 8 * 4 + n))
QK_IN I bytes(uint64_t a, uint64_t b) QK_LANES(I, .v[i] = uint32_t((i < 8 ? a : b) >> (i % 8 * 8)) & 255)
#endif

// table[code], sixteen entries; only the lowest 4 bits of the code count.
#if QK_ISA == 512
QK_IN F lookup(F table, I code) { return _mm512_permutexvar_ps(code.v, table.v); }
#elif QK_ISA == 2
QK_IN F lookup(F table, I code) {
  const auto eight = [&](__m256i c) {
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(table.v[0], c), _mm256_permutevar8x32_ps(table.v[1], c),
                            _mm256_castsi256_ps(_mm256_slli_epi32(c, 28)));
  };
  return {eight(code.v[0]), eight(code.v[1])};
}
#else
QK_IN F lookup(F table, I code) QK_LANES(F, .v[i] = table.v[code.v[i] & 15])
#endif

// ---------------------------------------------------------------- levels by code; bits above the code are ignored
// A code from bit `shift` of a word on. In straight code shift is a constant, and what codes of a word share is computed once.
struct Code {
  I word;
  int shift;
  QK_HD operator I() const { return right(word, shift); }
};

// Those of columns i and i + 4 of an octet, of 8 bits.
struct TwoCodes {
  I first, second;
  int shift;
};

template <int bits> struct Table;  // of the lowest `bits` bits
#if QK_ISA == 512
struct Sixteen {
  F t;
  template <int bits> QK_HD static Sixteen of(const float* l) {
    float all[16];
    for (int i = 0; i < 16; i++) all[i] = l[i & ((1 << bits) - 1)];
    return {load(all)};
  }
  QK_HD F operator()(I code) const { return lookup(t, code); }
};
template <int bits> struct Table : Sixteen { QK_HD explicit Table(const Packed& w) : Sixteen(of<bits>(w.levels)) {} };
template <> struct Table<8> {  // eight pairs of registers: bits 5 to 7 of the code choose; a gather takes three times as long
  __m512 t[16];
  QK_HD explicit Table(const Packed& w) { for (int i = 0; i < 16; i++) t[i] = _mm512_loadu_ps(w.levels + 16 * i); }
  QK_HD F operator()(I code) const {
    __m512 v[8];
    for (int i = 0; i < 8; i++) v[i] = _mm512_permutex2var_ps(t[2 * i], code.v, t[2 * i + 1]);
    for (int bit = 0; bit < 3; bit++) {
      const __mmask16 odd = _mm512_test_epi32_mask(code.v, _mm512_set1_epi32(32 << bit));
      for (int i = 0; i < 4 >> bit; i++) v[i] = _mm512_mask_blend_ps(odd, v[2 * i], v[2 * i + 1]);
    }
    return v[0];
  }
};
#elif QK_ISA == 2
template <int bits> struct Table {  // up to 8 levels in a register
  __m256 t;
  QK_HD explicit Table(const Packed& w) {
    float all[8];
    for (int i = 0; i < 8; i++) all[i] = w.levels[i & ((1 << bits) - 1)];
    t = _mm256_loadu_ps(all);
  }
  QK_HD F operator()(I code) const { return {_mm256_permutevar8x32_ps(t, code.v[0]), _mm256_permutevar8x32_ps(t, code.v[1])}; }
};
template <> struct Table<4> {
  F t;
  QK_HD explicit Table(const Packed& w) : t(load(w.levels)) {}
  QK_HD F operator()(I code) const { return lookup(t, code); }
};
// Up to sixteen levels as tables of bytes, for the eight codes of each word at a time: the upper kBytes of each level; the others are 0.
template <int bits, int kBytes> struct ByteTables : Table<bits> {
  __m256i table[kBytes];
  QK_HD explicit ByteTables(const Packed& w) : Table<bits>(w) {
    for (int b = 0; b < kBytes; b++) {
      alignas(16) uint8_t bytes[16];
      for (int i = 0; i < 16; i++) bytes[i] = uint8_t(qk::bits_of(w.levels[i & ((1 << bits) - 1)]) >> 8 * (4 - kBytes + b));
      table[b] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(bytes)));
    }
  }
  struct Eight { __m256i v[2][kBytes == 2 ? 4 : 8]; };  // of four bytes: of columns 0, 1, ...; of two: of 0 and 2, 1 and 3, 4 and 6, 5 and 7
  QK_HD Eight eight(I words) const {
    // In each half of a register: of two bytes, bytes 0 and 1 of its words first, so that the levels of columns i and i + 2 are together in
    // the words again; of four, bytes 0 of its words, then bytes 1, ...
    const __m256i order = _mm256_broadcastsi128_si256(kBytes == 2 ? _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15)
                                                                  : _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    Eight to;
    QK_UNROLL for (int h = 0; h < 2; h++) {
      const __m256i ordered = _mm256_shuffle_epi8(words.v[h], order);
      QK_UNROLL for (int odd = 0; odd < 2; odd++) {
        const __m256i code = _mm256_and_si256(odd ? _mm256_srli_epi32(ordered, 4) : ordered, _mm256_set1_epi8(15));
        const auto two = [&](int b, bool upper) QK_INLINE_LAMBDA {
          const __m256i l = _mm256_shuffle_epi8(table[b], code), h = _mm256_shuffle_epi8(table[b + 1], code);
          return upper ? _mm256_unpackhi_epi8(l, h) : _mm256_unpacklo_epi8(l, h);
        };
        QK_UNROLL for (int upper = 0; upper < 2; upper++) {
          if constexpr (kBytes == 2) to.v[h][2 * upper + odd] = two(0, upper);
          else {
            const __m256i l = two(0, upper), u = two(2, upper);
            to.v[h][4 * upper + odd] = _mm256_unpacklo_epi16(l, u), to.v[h][4 * upper + 2 + odd] = _mm256_unpackhi_epi16(l, u);
          }
        }
      }
    }
    return to;
  }
  QK_HD static F level(const Eight& of, int i) {
    const auto half = [&](int h) QK_INLINE_LAMBDA {
      if constexpr (kBytes == 4) return _mm256_castsi256_ps(of.v[h][i]);
      const __m256i two = of.v[h][i % 2 + i / 4 * 2];
      return _mm256_castsi256_ps(i % 4 < 2 ? _mm256_slli_epi32(two, 16) : _mm256_and_si256(two, _mm256_set1_epi32(-65536)));
    };
    return {half(0), half(1)};
  }
  using Table<bits>::operator();
  QK_HD F operator()(const Code& code) const { return level(eight(code.word), code.shift / 4); }
};
template <> struct Table<8> {  // one by one: a gather takes longer
  const float* l;
  QK_HD explicit Table(const Packed& w) : l(w.levels) {}
  QK_HD __m128 four(__m128i words, int shift) const {  // a and b, before they are shifted, are the same for all columns of a word
    const uint64_t a = uint64_t(_mm_cvtsi128_si64(words)) >> shift, b = uint64_t(_mm_extract_epi64(words, 1)) >> shift;
    return _mm_setr_ps(l[uint8_t(a)], l[uint8_t(a >> 32)], l[uint8_t(b)], l[uint8_t(b >> 32)]);
  }
  QK_HD __m256 eight(__m256i words, int shift) const {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(four(_mm256_castsi256_si128(words), shift)), four(_mm256_extracti128_si256(words, 1), shift), 1);
  }
  QK_HD F operator()(I code) const { return {eight(code.v[0], 0), eight(code.v[1], 0)}; }
  QK_HD F operator()(const Code& code) const { return {eight(code.word.v[0], code.shift), eight(code.word.v[1], code.shift)}; }
};
#else
template <int bits> struct Table {
  const float* l;
  QK_HD explicit Table(const Packed& w) : l(w.levels) {}
  QK_HD F operator()(I code) const QK_LANES(F, .v[i] = l[code.v[i] & ((1u << bits) - 1)])
};
#endif

// Eight bits whose levels are base + step * code: without a table.
struct Uniform {
  F base, step;
  QK_HD explicit Uniform(const Packed& w) : base(w.base), step(w.step) {}
  QK_HD F operator()(I code) const { return fused(to_float(masked(code, 255)), step, base); }
};

// How the codes of a weight become levels.
template <int n, class T> struct Kind { static constexpr int bits = n; using Levels = T; };
template <class Body> QK_IN void for_kind(const Packed& w, Body&& body) {
  switch (w.bits) {
    case 1: return body(Kind<1, Table<1>>{});
    case 2: return body(Kind<2, Table<2>>{});
    case 3:
#if QK_ISA == 2
      if (w.narrow && w.prefers_bytes) return body(Kind<3, ByteTables<3, 2>>{});
#endif
      return body(Kind<3, Table<3>>{});
    case 4:
#if QK_ISA == 2
      if (w.narrow) return body(Kind<4, ByteTables<4, 2>>{});
      if (w.prefers_bytes) return body(Kind<4, ByteTables<4, 4>>{});
#endif
      return body(Kind<4, Table<4>>{});
    case 8: return w.uniform ? body(Kind<8, Uniform>{}) : body(Kind<8, Table<8>>{});
  }
}

// ---------------------------------------------------------------- the tiles of a stripe
// A sub-block is 32 columns: four octets, t = 0 to 3. Words of a plane of p < 8 bits hold an octet of 4 / p sub-blocks.
template <int p> struct Plane {
  static constexpr int kBlocks = 8 / p;   // sub-blocks of a tile
  static constexpr int kAhead = 2048;  // bytes: what was fastest of 512 to 8192 for several rows of x
  const uint8_t* first;
  int64_t stride;  // bytes of a stripe
  Plane(const uint8_t* codes, int64_t K) : first(codes), stride((K + 32 * kBlocks - 1) / (32 * kBlocks) * 512) {}
  // The words of the tile that holds sub-block `block`.
  QK_HD void load(int64_t stripe, int64_t block, I* words) const {
    transpose_tile(first + stripe * stride + block / kBlocks * 512, words);
  }
  // A quarter of the lines of sub-block `block`, `ahead` bytes early: of the next R stripes where this one ends. To L1, or only to L2.
  template <int R, int ahead = kAhead, bool to_l1 = true> QK_HD void prefetch(int64_t stripe, int64_t block, int t) const {
    int64_t offset = block * (64 * p) + ahead;
    if (offset >= stride) offset += (R - 1) * stride;
    for (int line = t; line < p; line += 4) __builtin_prefetch(first + stripe * stride + offset + line * 64, 0, to_l1 ? 3 : 1);
  }
  // For kernels that read a stripe, one at a time, as fast as memory gives it.
  QK_HD void prefetch_far(int64_t stripe, int64_t block, int t) const {
    prefetch<1>(stripe, block, t);
    prefetch<1, 8192, false>(stripe, block, t);
  }
};

// Words of which n columns are looked up: in registers, where gcc would read them from memory for every shift. For fewer columns, and
// on AVX2, that was no faster.
template <int n> QK_IN I kept(I words) {
#if QK_ISA == 512
  if constexpr (n == 8) asm("" : "+v"(words.v));
#endif
  return words;
}

// The codes of stripes. kBlocks sub-blocks are loaded at a time, as kWords words; sub-block b of them is split into
// b = first + s, s < kSteps, because constants depend on s alone.
template <int bits> struct Codes {
  static constexpr int kBlocks = 8 / bits, kWords = 8, kSteps = bits == 8 ? 1 : 4 / bits;
  Plane<bits> plane;
  explicit Codes(const Packed& w) : plane(w.codes, w.K) {}
  QK_HD void load(int64_t stripe, int64_t block, I* words) const { plane.load(stripe, block, words); }
  // The same for a stripe in order of its columns: before it, before each unit, and in sub-block b of a unit. Tiles of 3 bits come one
  // by one, each a sub-block early: three at once would keep the multipliers waiting.
  QK_HD void load_first(int64_t, I*) const {}
  QK_HD void load_unit(int64_t stripe, int64_t block, I* words) const { load(stripe, block, words); }
  QK_HD void load_ahead(int64_t, int64_t, int, I*) const {}
  template <int R> QK_HD void prefetch(int64_t stripe, int64_t block, int t) const { plane.template prefetch<R>(stripe, block, t); }
  QK_HD void prefetch_far(int64_t stripe, int64_t block, int t) const { plane.prefetch_far(stripe, block, t); }
  // body(i, r, code) for the columns i < n of octet t of R stripes: the code is in the lowest bits. Up to 4 bits, that of
  // column i + 4 is 16 bits further up; of 8 bits, n = 4 gives TwoCodes.
  template <int n = 8, int R, class Body> QK_IN void octet(const I (&words)[R][kWords], int first, int s, int t, Body&& body) {
    I word[R];
    if constexpr (bits == 8 && n == 4) {
      QK_UNROLL for (int i = 0; i < 4; i++)
        for (int r = 0; r < R; r++) body(i, r, TwoCodes{words[r][t], words[r][4 + t], 8 * i});
    } else if constexpr (bits == 8) {
      for (int half = 0; half < 8; half += 4) {
        for (int r = 0; r < R; r++) word[r] = words[r][half + t];
        QK_UNROLL for (int i = 0; i < 4; i++)
          for (int r = 0; r < R; r++) body(half + i, r, Code{word[r], 8 * i});
      }
    } else {
      for (int r = 0; r < R; r++) word[r] = kept<n>(words[r][first / kSteps * 4 + t]);
      QK_UNROLL for (int i = 0; i < n; i++)
        for (int r = 0; r < R; r++) body(i, r, Code{word[r], 4 * i + bits * s});
    }
  }
  // The codes of a row at the sixteen columns of octets t and t + 1; words [kWords][16] in memory.
  QK_IN I columns(const uint32_t (*words)[16], int b, int t, int row) {
    if constexpr (bits == 8) {
      const auto octet = [&](int at) QK_INLINE_LAMBDA { return words[at][row] | uint64_t(words[at + 4][row]) << 32; };
      return bytes(octet(t), octet(t + 1));
    } else {
      const auto* of_block = words + b / kSteps * 4 + t;
      return nibbles(of_block[0][row], of_block[1][row], b % kSteps * bits);
    }
  }
};
template <> struct Codes<3> {  // bits 0 and 1 in the first plane, bit 2 in the second
  static constexpr int kBlocks = 8, kWords = 24, kSteps = 4;
  Plane<2> low;
  Plane<1> high;
  explicit Codes(const Packed& w) : low(w.codes, w.K), high(w.codes + (w.N + 15) / 16 * low.stride, w.K) {}
  QK_HD void load(int64_t stripe, int64_t block, I* words) const {
    low.load(stripe, block, words);
    if ((block + 4) * 128 < low.stride) low.load(stripe, block + 4, words + 8);  // 128 bytes a sub-block
    high.load(stripe, block, words + 16);
  }
  QK_HD void load_first(int64_t stripe, I* words) const { low.load(stripe, 0, words); }
  QK_HD void load_unit(int64_t stripe, int64_t block, I* words) const { high.load(stripe, block, words + 16); }
  QK_HD void load_ahead(int64_t stripe, int64_t block, int b, I* words) const {
    if (b == 3 && (block + 4) * 128 < low.stride) low.load(stripe, block + 4, words + 8);
    if (b == 7 && (block + 8) * 128 < low.stride) low.load(stripe, block + 8, words);
  }
  template <int R> QK_HD void prefetch(int64_t stripe, int64_t block, int t) const {
    low.prefetch<R>(stripe, block, t);
    high.prefetch<R>(stripe, block, t);
  }
  QK_HD void prefetch_far(int64_t stripe, int64_t block, int t) const {
    low.prefetch<1, 8192, false>(stripe, block, t);  // and to L1 as well: no faster here
    high.prefetch<1, 4096>(stripe, block, t);
  }
  template <int n = 8, int R, class Body> QK_IN void octet(const I (&words)[R][kWords], int first, int s, int t, Body&& body) {
    I word[R];  // of nibbles: bits 0 to 2 are the code
    for (int r = 0; r < R; r++) {
      const I two = words[r][first / 2 * 4 + s / 2 * 4 + t], one = words[r][16 + first + t];
      word[r] = kept<n>(choose(0x33333333u, right(two, s % 2 * 2), s < 2 ? left(one, 2 - s) : right(one, s - 2)));
    }
    QK_UNROLL for (int i = 0; i < n; i++)
      for (int r = 0; r < R; r++) body(i, r, Code{word[r], 4 * i});
  }
  QK_IN I columns(const uint32_t (*words)[16], int b, int t, int row) {
    const auto* two = words + b / 2 * 4 + t;
    const auto* one = words + 16 + b / 4 * 4 + t;
    return choose(3, nibbles(two[0][row], two[1][row], b % 2 * 2), left(nibbles(one[0][row], one[1][row], b % 4), 2));
  }
};

// ---------------------------------------------------------------- sums
QK_IN int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

// The scale of each row of a stripe.
QK_IN F scale_of(const Packed& w, int64_t stripe, int64_t group) {
  const int64_t at = (stripe * w.G + group) * kStripe;
  if (w.scale.dtype == 0) return load(static_cast<const float*>(w.scale.data) + at);
  if (w.scale.dtype == 1) return load(static_cast<const qk::half*>(w.scale.data) + at);
  return load(static_cast<const qk::bfloat*>(w.scale.data) + at);
}

// The segments of a row, one after another.
struct Segment {
  int64_t most, end, group_end, group;  // columns, columns, columns, index
  QK_HD explicit Segment(const Packed& w, int64_t most = kSegment) : most(most), end(lower(most, w.group)), group_end(w.group), group(0) {}
  QK_HD void next(const Packed& w) {
    if (end == group_end) group_end += w.group, group++;
    end = lower(end + most, group_end);
  }
  QK_HD F scale(const Packed& w, int64_t stripe) const { return scale_of(w, stripe, group); }
};

// R stripes from `stripe` on, column after column: each(k, i, r, code) for column k + i of stripe r, k a multiple of 8 and
// i < n (see Codes::octet); at the end of a segment done(k, scale), k its end and scale that of each stripe. Those at `end`
// and beyond are the last one again.
template <int bits, int R, int n = 8, class Each, class Done>
QK_IN void over_columns(const Packed& w, int64_t stripe, int64_t end, Each&& each, Done&& done) {
  using C = Codes<bits>;
  const C codes(w);
  const int64_t blocks = (w.K + kBlock - 1) / kBlock;
  const auto at = [&](int r) QK_INLINE_LAMBDA { return lower(stripe + r, end - 1); };
  I words[R][C::kWords];
  Segment segment(w);
  for (int64_t start = 0; start < blocks; start += C::kBlocks) {
    for (int r = 0; r < R; r++) codes.load(at(r), start, words[r]);
    for (int first = 0; first < C::kBlocks; first += C::kSteps) {
      QK_UNROLL for (int s = 0; s < C::kSteps; s++) {
        const int64_t block = start + first + s;
        if (block >= blocks) break;
        for (int t = 0; t < 4; t++) {
          const int64_t k = block * kBlock + 8 * t;
          for (int r = 0; r < R; r++) codes.template prefetch<R>(at(r), block, t);
          C::template octet<n>(words, first, s, t, [&](int i, int r, auto code) QK_INLINE_LAMBDA { each(k, i, r, code); });
        }
        if ((block + 1) * kBlock >= segment.end) {
          F scale[R];
          for (int r = 0; r < R; r++) scale[r] = segment.scale(w, at(r));
          done((block + 1) * kBlock, scale);
          segment.next(w);
        }
      }
    }
  }
}

// The sums of R stripes times M activation rows in registers: d of a segment, total of those before.
template <int R, int M> struct Sums {
  F d[R][M], total[R][M];
  QK_HD Sums() {
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) total[r][m] = d[r][m] = F(0.0f);
  }
  QK_HD void end_segment(const F* scale) {
    for (int r = 0; r < R; r++)
      for (int m = 0; m < M; m++) {
        total[r][m] = fused(d[r][m], scale[r], total[r][m]);
        d[r][m] = F(0.0f);
      }
  }
};

// The rows of a stripe that exist, of one activation row.
template <class T> QK_IN void finish(const Packed& w, int64_t stripe, F total, const float* bias, T* y) {
  const int64_t n = stripe * kStripe, rows = lower(kStripe, w.N - n);
  if (rows == kStripe) {
    store(y + n, bias ? total + load(bias + n) : total);
  } else {
    store_part(y + n, bias ? total + load_part(bias + n, rows) : total, rows);
  }
}

// The same of row m of y.
QK_IN void write(const Packed& w, int64_t stripe, F total, const float* bias, Output y, int64_t m) {
  if (y.dtype == 0) finish(w, stripe, total, bias, static_cast<float*>(y.data) + m * w.N);
  else if (y.dtype == 1) finish(w, stripe, total, bias, static_cast<qk::half*>(y.data) + m * w.N);
  else finish(w, stripe, total, bias, static_cast<qk::bfloat*>(y.data) + m * w.N);
}

}  // namespace
