// One activation row times a packed weight on the CPU, without the transposition of codes, or with fewer look-ups than weights.
//
// The order of every sum, on every instruction set: eight sums for each row of the weight, one for each octet and word of a
// line (see Lines). Their products are added one column after another, product and sum with one rounding, up to where a group
// ends or 16 units of a line; that times its scale is added to a total in the same way; at the end the totals are added,
// octets first; then the bias. Of 1 or 2 bits (evenly spaced levels of 2 bits are multiplied in integers), where no group ends within a
// word of codes, instead one sum: of sums over the columns of a nibble, each in order of its columns; it ends with a group or after
// 128 columns.
#pragma once
#include "lut_words.h"

namespace {

// ---------------------------------------------------------------- lines
// Of 1, 2 and 4 bits AVX-512 takes four lines at a time: shifts, then look-ups, then products of all four, where line after line each
// would wait for the one before. (Faster on AMD's Zen 4; not timed on others.) all_at_once is no instruction: what it names is computed
// before anything that uses it.
#if QK_ISA == 512
constexpr int kTurn = 4;
template <class V> QK_IN void all_at_once(V (&a)[4]) { asm("" : "+v"(a[0].v), "+v"(a[1].v), "+v"(a[2].v), "+v"(a[3].v)); }
#else
constexpr int kTurn = 1;
#endif
template <class V> QK_IN void all_at_once(V (&)[1]) {}

// The codes of a T16 tile as they lie: line g is 64 bytes, word w of the octets t of row g in element 4 t + w and of row g + 8 in
// 4 t + 2 + w. A tile is kSteps units, by the place of a code in its nibble; word w of step s is sub-block w * kSteps + s of the
// tile, or of 8 bits columns 4 w and up of each octet of the one that there is.
template <int bits> struct Lines {
  static constexpr int kSteps = bits == 8 ? 1 : 4 / bits, kColumns = bits == 8 ? 4 : 8;  // columns of a word in a unit
  static constexpr int kWidth = bits == 8 ? 32 : 64 * kSteps;                            // of a tile, in columns
  Plane<bits> plane;
  explicit Lines(const Packed& w) : plane(w.codes, w.K) {}
  QK_HD const uint8_t* at(int64_t stripe, int64_t tile) const { return plane.first + stripe * plane.stride + tile * 512; }
  QK_HD void prefetch(int64_t stripe, int64_t tile, int g) const {
    const uint8_t* const line = at(stripe, tile) + g * 64;
    if constexpr (QK_ISA == 512 && bits == 4) __builtin_prefetch(line + 4096), __builtin_prefetch(line + 16384, 0, 2);
    else __builtin_prefetch(line + 2048);  // for 4 bits from memory that is too near, on Zen 4
  }
  QK_HD I word(int64_t stripe, int64_t tile, int g, int) const {  // of nibbles
    static_assert(bits == 4);
    return load_words(at(stripe, tile) + g * 64);
  }
  // body(i, g, codes) for the columns i < count of step s of n lines from `first` on; codes: an array, of 1 or kTurn lines from g on.
  template <int n, int count = kColumns, class Body> QK_HD void codes(int64_t stripe, int64_t tile, int first, int s, Body&& body) const {
    const auto code = [&](I line, int i) QK_INLINE_LAMBDA { return Code{line, bits == 8 ? 8 * i : 4 * i + bits * s}; };
    I line[n];
    QK_UNROLL for (int g = 0; g < n; g++) line[g] = kept<count>(load_words(at(stripe, tile) + (first + g) * 64));
    if constexpr (QK_ISA == 2 || bits == 8) {  // line by line, for what codes of a word share fills the registers (see ByteTables, Bytes)
      QK_UNROLL for (int g = 0; g < n; g++)
        QK_UNROLL for (int i = 0; i < count; i++) {
          const Code one[] = {code(line[g], i)};
          body(i, g, one);
        }
    } else {
      QK_UNROLL for (int i = 0; i < count; i++)
        QK_UNROLL for (int g = 0; g < n; g += kTurn) {
          I own[kTurn];
          QK_UNROLL for (int j = 0; j < kTurn; j++) own[j] = code(line[g + j], i);
          all_at_once(own);
          body(i, g, own);
        }
    }
  }
};
template <> struct Lines<3> {  // tiles are those of the plane of bits 0 and 1
  static constexpr int kSteps = 2, kColumns = 8, kWidth = 128;
  Plane<2> low;
  Plane<1> high;
  explicit Lines(const Packed& w) : low(w.codes, w.K), high(w.codes + (w.N + 15) / 16 * low.stride, w.K) {}
  QK_HD const uint8_t* at(int64_t stripe, int64_t tile) const { return low.first + stripe * low.stride + tile * 512; }
  QK_HD void prefetch(int64_t stripe, int64_t tile, int g) const {
    __builtin_prefetch(at(stripe, tile) + 2048 + g * 64);
    if (tile % 2 == 0) __builtin_prefetch(high.first + stripe * high.stride + tile * 256 + 1024 + g * 64);
  }
  QK_HD I word(int64_t stripe, int64_t tile, int g, int s) const {  // bits 0 to 2 of a nibble are the code
    const I two = right(load_words(at(stripe, tile) + g * 64), 2 * s);
    const I one = load_words(high.first + stripe * high.stride + tile / 2 * 512 + g * 64);
    return choose(0x33333333u, two, left_by(repeat(one, int(tile % 2)), 2 - s, -s));
  }
  template <int n, int count = kColumns, class Body> QK_HD void codes(int64_t stripe, int64_t tile, int first, int s, Body&& body) const {
    I words[n];
    QK_UNROLL for (int g = 0; g < n; g++) words[g] = word(stripe, tile, first + g, s);
    QK_UNROLL for (int i = 0; i < count; i++)
      QK_UNROLL for (int g = 0; g < n; g++) {
        const Code one[] = {{words[g], 4 * i}};
        body(i, g, one);
      }
  }
};

// One activation row, 1 or 2 bits: a nibble holds the codes of 4 or 2 columns, and 16 sums of their products are all that it can
// stand for. Word after word: tables [octet][nibble][16]; and the word's group, with 1 where a segment ends.
template <int bits> struct Nibbles {
  static constexpr int kColumns = 4 / bits, kLongest = 4 / kColumns;  // columns of a nibble, words of a segment
  static bool fit(const Packed& w) { return bits <= 2 && (w.G == 1 || w.group % (kColumns * kBlock) == 0); }
  static int64_t words(int64_t K) { return (K + 2 * kColumns * kBlock - 1) / (2 * kColumns * kBlock) * 2; }
  static void room(const Packed& w, int64_t* floats, int64_t* numbers) { *floats = words(w.K) * 32 * kLanes, *numbers = words(w.K) * 2; }
  static void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
    const int64_t all = words(w.K);
    const auto group = [&](int64_t word) {
      const int64_t column = word * kColumns * kBlock;
      return column < w.K ? int32_t(column / w.group) : -1;  // beyond K
    };
    F levels[kColumns];  // of column c, for each nibble
    for (int c = 0; c < kColumns; c++) {
      float of[kLanes];
      for (int v = 0; v < kLanes; v++) of[v] = w.levels[v >> (bits * c) & ((1 << bits) - 1)];
      levels[c] = load(of);
    }
    int64_t begun = 0;
    for (int64_t word = 0; word < all; word++, groups += 2) {
      for (int j = 0; j < 32; j++, to += kLanes) {  // of an octet's nibbles, octet after octet
        F sum(0.0f);
        for (int c = 0; c < kColumns; c++) {
          const int64_t k = (word * kColumns + c) * kBlock + j;
          if (k < w.K) sum = fused(levels[c], F(x[k]), sum);
        }
        store(to, sum);
      }
      groups[0] = group(word), groups[1] = word + 1 == all || word + 1 - begun == kLongest || group(word + 1) != groups[0];
      if (groups[1]) begun = word + 1;
    }
  }
  static constexpr int R = QK_ISA == 512 ? 4 : 2;  // stripes at a time, which share what is loaded of the tables
  static void linear(const Packed& w, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y) {
    for (; begin < end; begin += R) stripes(w, begin, end, x, groups, bias, y);
  }
  static void stripes(const Packed& w, int64_t stripe, int64_t end, const float* tables, const int32_t* groups, const float* bias, Output y) {
    const Plane<bits> plane(w.codes, w.K);
    const int64_t tiles = Nibbles<bits>::words(w.K) / 2;
    const auto at = [&](int r) QK_INLINE_LAMBDA { return lower(stripe + r, end - 1); };
    F d[R], total[R];
    for (int r = 0; r < R; r++) total[r] = d[r] = F(0.0f);
    for (int64_t tile = 0; tile < tiles; tile++) {
      I words[R][8];
      for (int r = 0; r < R; r++) {
        plane.load(at(r), tile * Plane<bits>::kBlocks, words[r]);
        for (int b = 0; b < Plane<bits>::kBlocks; b++)
          for (int t = 0; t < 4; t++) plane.template prefetch<R>(at(r), tile * Plane<bits>::kBlocks + b, t);
      }
      for (int half = 0; half < 2; half++, groups += 2) {
        for (int t = 0; t < 4; t++, tables += 8 * kLanes) {
          I word[R];
          for (int r = 0; r < R; r++) word[r] = kept<8>(words[r][4 * half + t]);
          QK_UNROLL for (int i = 0; i < 8; i++) {
            const F sums = load(tables + i * kLanes);
            for (int r = 0; r < R; r++) d[r] = d[r] + lookup(sums, right(word[r], 4 * i));
          }
        }
        if (groups[1] && groups[0] >= 0)
          for (int r = 0; r < R; r++) total[r] = fused(d[r], scale_of(w, at(r), groups[0]), total[r]), d[r] = F(0.0f);
      }
    }
    for (int r = 0; r < R && stripe + r < end; r++) write(w, stripe + r, total[r], bias, y, 0);
  }
};

// One activation row: the elements of a line meet their own columns of x, so that codes need not be transposed.
// Unit after unit: x [kEach][16]; and the groups of the two words, -1 beyond K, with 1 where a segment ends.
#if QK_ISA == 512
constexpr int kLines = 8;  // at a time: their sums are in registers
#else
constexpr int kLines = 4;
#endif

#if QK_ISA
// Scales of a stripe in memory: where they are, or as floats in `own`; 0 of group -1.
QK_IN const float* scales_of(const Packed& w, int64_t stripe, int64_t group, float (&own)[kStripe]) {
  if (group >= 0 && w.scale.dtype == 0) return static_cast<const float*>(w.scale.data) + (stripe * w.G + group) * kStripe;
  store(own, group < 0 ? F(0.0f) : scale_of(w, stripe, group));
  return own;
}
#endif
#if QK_ISA == 2
// For line g, the scale of each element's row, of the groups of both words; by loads, for permutations take longer.
struct LineScales {
  float own[2][kStripe];
  const float *first, *second;
  QK_HD LineScales(const Packed& w, int64_t stripe, const int32_t* groups)
      : first(scales_of(w, stripe, groups[0], own[0])),
        second(groups[1] == groups[0] ? first : scales_of(w, stripe, groups[1], own[1])) {}
  LineScales(const LineScales&) = delete;  // it points into itself
  QK_HD F operator()(int g) const {
    const auto row = [&](int r) QK_INLINE_LAMBDA { return _mm256_blend_ps(_mm256_broadcast_ss(first + r), _mm256_broadcast_ss(second + r), 0xaa); };
    const __m256 eight = _mm256_blend_ps(row(g), row(g + 8), 0xcc);
    return {eight, eight};
  }
};
#elif QK_ISA == 512
// As of_row where both words have the same scales, for line g + j, j < 4, from the scales from row g on: by loads and one shuffle.
struct FourLines {
  __m512 a, b;  // of rows g to g + 3, of rows g + 8 to g + 11
  QK_HD explicit FourLines(const float* scale)
      : a(_mm512_broadcast_f32x4(_mm_loadu_ps(scale))), b(_mm512_broadcast_f32x4(_mm_loadu_ps(scale + 8))) {}
  QK_HD F operator()(int j) const {
    return j == 0 ? _mm512_shuffle_ps(a, b, 0x00) : j == 1 ? _mm512_shuffle_ps(a, b, 0x55)
         : j == 2 ? _mm512_shuffle_ps(a, b, 0xaa) : _mm512_shuffle_ps(a, b, 0xff);
  }
};
#endif

QK_IN F product_added(F sum, F level, const float* x) { return fused(level, load(x), sum); }

// Sums of the rows of a stripe, from those of lines' elements: of octets 0 and 1, of 2 and 3, both together, then both words. (On AVX-512
// they come in the order of word_out_of_order: element 4 j + 2 i + h is of line 4 i + j and row 8 h + 4 i + j.)
QK_IN F rows_of(const float (&sums)[8][kLanes]) {
#if QK_ISA == 512
  const auto two = [](F a, F b) QK_INLINE_LAMBDA {  // quarters 0 + 1 and 2 + 3 of a, then of b
    return F(_mm512_shuffle_f32x4(a.v, b.v, 0x88)) + F(_mm512_shuffle_f32x4(a.v, b.v, 0xdd));
  };
  const auto four = [&](int g) QK_INLINE_LAMBDA {  // of each line a quarter
    return two(two(load(sums[g]), load(sums[g + 1])), two(load(sums[g + 2]), load(sums[g + 3])));
  };
  const F a = four(0), b = four(4), rows = F(_mm512_shuffle_ps(a.v, b.v, 0x88)) + F(_mm512_shuffle_ps(a.v, b.v, 0xdd));
  return in_order(rows);
#else
  float rows[kStripe];
  for (int r = 0; r < kStripe; r++) {
    const float* e = sums[r % 8] + r / 8 * 2;
    rows[r] = ((e[0] + e[4]) + (e[8] + e[12])) + ((e[1] + e[5]) + (e[9] + e[13]));
  }
  return load(rows);
#endif
}

template <int bits, class Levels, int kEach = Lines<bits>::kColumns> struct Alone {  // kEach products for the columns of a word
  using L = Lines<bits>;
  static constexpr int kLongest = 16;
  static int64_t units(int64_t K) { return (K + L::kWidth - 1) / L::kWidth * L::kSteps; }
  static void room(const Packed& w, int64_t* floats, int64_t* numbers) { *floats = units(w.K) * kEach * kLanes, *numbers = units(w.K) * 3; }
  // The first of the columns of word w of unit u.
  static int64_t column(int64_t u, int w) {
    return bits == 8 ? u * 32 + 4 * w : ((u / L::kSteps * 2 + w) * L::kSteps + u % L::kSteps) * kBlock;
  }
  static void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
    const auto at = [&](int64_t k) { return k < w.K ? x[k] : 0.0f; };
    for (int64_t u = 0; u < units(w.K); u++)
      for (int i = 0; i < L::kColumns; i++)
        for (int k = i; k < i + kBlock; k += 8, to += 4) to[0] = to[2] = at(column(u, 0) + k), to[1] = to[3] = at(column(u, 1) + k);
    spread_groups(w, groups);
  }
  static void spread_groups(const Packed& w, int32_t* groups) {
    const int64_t all = units(w.K);
    const auto group = [&](int64_t u, int word) { return column(u, word) < w.K ? int32_t(column(u, word) / w.group) : -1; };
    int64_t begun = 0;
    for (int64_t u = 0; u < all; u++, groups += 3) {
      groups[0] = group(u, 0), groups[1] = group(u, 1);
      groups[2] = u + 1 == all || u + 1 - begun == kLongest || group(u + 1, 0) != groups[0] || group(u + 1, 1) != groups[1];
      if (groups[2]) begun = u + 1;
    }
  }
  static void linear(const Packed& w, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y) {
    const L lines(w);
    const Levels table(w);
    const int64_t tiles = units(w.K) / L::kSteps;
    for (int64_t stripe = begin; stripe < end; stripe++) {
      alignas(64) float sums[8][kLanes];
      for (int first = 0; first < 8; first += kLines) {
        F d[kLines], total[kLines];
        for (int g = 0; g < kLines; g++) total[g] = d[g] = F(0.0f);
        const float* from = x;
        const int32_t* of = groups;
        for (int64_t tile = 0; tile < tiles; tile++) {
          for (int g = 0; g < kLines; g++) lines.prefetch(stripe, tile, first + g);
          QK_UNROLL for (int s = 0; s < L::kSteps; s++, from += kEach * kLanes, of += 3) {
            if constexpr (requires { typename Levels::Eight; }) {
              typename Levels::Eight levels[kLines];
              QK_UNROLL for (int g = 0; g < kLines; g++) levels[g] = table.eight(lines.word(stripe, tile, first + g, s));
              QK_UNROLL for (int i = 0; i < kEach; i++)
                QK_UNROLL for (int g = 0; g < kLines; g++) d[g] = product_added(d[g], Levels::level(levels[g], i), from + i * kLanes);
            } else lines.template codes<kLines, kEach>(stripe, tile, first, s, [&](int i, int g, auto& own) QK_INLINE_LAMBDA {
              constexpr int n = sizeof own / sizeof own[0];
              decltype(table(own[0])) levels[n];
              QK_UNROLL for (int j = 0; j < n; j++) levels[j] = table(own[j]);
              all_at_once(levels);
              QK_UNROLL for (int j = 0; j < n; j++) d[g + j] = product_added(d[g + j], levels[j], from + i * kLanes);
            });
            if (of[2]) {
              const auto end_segment = [&](int g, F scale) QK_INLINE_LAMBDA { total[g] = fused(d[g], scale, total[g]), d[g] = F(0.0f); };
#if QK_ISA == 512
              if (bits == 4 && kEach == 4 && of[0] == of[1]) {  // of pairs; others were no faster so, on Zen 4
                alignas(64) float own[kStripe];
                const float* const scales = scales_of(w, stripe, of[0], own);
                QK_UNROLL for (int g = 0; g < kLines; g += 4) {
                  const FourLines scale(scales + g);
                  QK_UNROLL for (int j = 0; j < 4; j++) end_segment(g + j, scale(j));
                }
                continue;
              }
#endif
#if QK_ISA == 2
              const LineScales scale(w, stripe, of);
              for (int g = 0; g < kLines; g++) end_segment(g, scale(first + g));
#else
              const auto scale = [&](int g) { return g < 0 ? F(0.0f) : scale_of(w, stripe, g); };
              const F one = scale(of[0]), other = scale(of[1]);
              for (int g = 0; g < kLines; g++) end_segment(g, of_row(one, other, first + g));
#endif
            }
          }
        }
        for (int g = 0; g < kLines; g++) store(sums[first + g], total[g]);
      }
      write(w, stripe, rows_of(sums), bias, y, 0);
    }
  }
};

}  // namespace
