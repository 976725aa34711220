// Packed weights on the CPU. A vector holds the sixteen rows of a stripe for one column, so a product takes one activation
// for all lanes, a scale is one load, and nothing is summed across lanes.
//
// The order of every sum, on every instruction set: for two activation rows or more a segment is up to 128 columns of one
// group. Its products are added one column after another, product and sum with one rounding; segment times scale is
// added to the total in the same way, segment after segment; then the bias. For a row alone, which reads the codes as they lie,
// it is eight such sums, one for each octet and word of a line (see Lines), with segments of up to 16 units; at the end these
// are added, octets first. One or two bits of a row alone, where no group ends within a word of codes: the products of a nibble
// are summed when x is spread out, in order of its columns; such sums are what is added.
#include "lut_words.h"

namespace {

// Few activation rows multiply the levels as they come out of the table (`direct`); more share what is decoded into a
// buffer that stays in the L1 cache (`shared`), and then sums of kTile rows by kPair stripes are in registers.
#if QK_ISA == 512
constexpr int kTile = 12, kPair = 2;
#elif QK_ISA == 2
constexpr int kTile = 6, kPair = 1;
#else
constexpr int kTile = 4, kPair = 1;
#endif

// One activation row, 1 or 2 bits: a nibble holds the codes of 4 or 2 columns, and 16 sums of their products are all that it can
// stand for. Word after word: tables [octet][nibble][16]; and the word's group, with 1 where a segment ends.
template <int bits> struct Nibbles {
  static constexpr int kColumns = 4 / bits, kLongest = 8;  // columns of a nibble, words of a segment
  static bool fit(const Packed& w) { return bits <= 2 && (w.G == 1 || w.group % (kColumns * kBlock) == 0); }
  static int64_t words(int64_t K) { return (K + 2 * kColumns * kBlock - 1) / (2 * kColumns * kBlock) * 2; }
  static void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
    const int64_t all = words(w.K);
    const auto group = [&](int64_t word) { return int32_t(lower(word * kColumns * kBlock / w.group, w.G - 1)); };
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
};
template <int bits, int R>
void nibbles(const Packed& w, int64_t stripe, int64_t end, const float* tables, const int32_t* groups, const float* bias, Output y) {
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
      for (int t = 0; t < 4; t++, tables += 8 * kLanes)
        QK_UNROLL for (int i = 0; i < 8; i++) {
          const F sums = load(tables + i * kLanes);
          for (int r = 0; r < R; r++) d[r] = d[r] + lookup(sums, right(words[r][4 * half + t], 4 * i));
        }
      if (groups[1])
        for (int r = 0; r < R; r++) total[r] = fused(d[r], load(w.scale + (at(r) * w.G + groups[0]) * kStripe), total[r]), d[r] = F(0.0f);
    }
  }
  for (int r = 0; r < R && stripe + r < end; r++) write(w, stripe + r, total[r], bias, y, 0);
}

// One activation row: the elements of a line meet their own columns of x, so that codes need not be transposed.
// Unit after unit: x [kColumns][16]; and the groups of the two words, with 1 where a segment ends.
template <int bits> struct Alone {
  using L = Lines<bits>;
  static constexpr int kLongest = 16;
  static int64_t units(int64_t K) { return (K + L::kWidth - 1) / L::kWidth * L::kSteps; }
  // The first of the columns of word w of unit u.
  static int64_t column(int64_t u, int w) {
    return bits == 8 ? u * 32 + 4 * w : ((u / L::kSteps * 2 + w) * L::kSteps + u % L::kSteps) * kBlock;
  }
  static void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
    const int64_t all = units(w.K);
    const auto group = [&](int64_t u, int word) { return int32_t(lower(column(u, word) / w.group, w.G - 1)); };
    int64_t begun = 0;
    for (int64_t u = 0; u < all; u++, groups += 3) {
      for (int i = 0; i < L::kColumns; i++)
        for (int e = 0; e < kLanes; e++) {
          const int64_t k = column(u, e % 2) + e / 4 * 8 + i;
          *to++ = k < w.K ? x[k] : 0.0f;
        }
      groups[0] = group(u, 0), groups[1] = group(u, 1);
      groups[2] = u + 1 == all || u + 1 - begun == kLongest || group(u + 1, 0) != groups[0] || group(u + 1, 1) != groups[1];
      if (groups[2]) begun = u + 1;
    }
  }
};

#if QK_ISA == 512
constexpr int kLines = 8;  // at a time: their sums are in registers
#else
constexpr int kLines = 4;
#endif
template <int bits, class Levels>
void alone(const Packed& w, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y) {
  using L = Lines<bits>;
  const L lines(w);
  const Levels table(w);
  const int64_t tiles = Alone<bits>::units(w.K) / L::kSteps;
  for (int64_t stripe = begin; stripe < end; stripe++) {
    alignas(64) float sums[8][kLanes], rows[kLanes];
    for (int first = 0; first < 8; first += kLines) {
      F d[kLines], total[kLines];
      for (int g = 0; g < kLines; g++) total[g] = d[g] = F(0.0f);
      const float* from = x;
      const int32_t* of = groups;
      for (int64_t tile = 0; tile < tiles; tile++) {
        for (int g = 0; g < kLines; g++) lines.prefetch(stripe, tile, first + g);
        QK_UNROLL for (int s = 0; s < L::kSteps; s++, from += L::kColumns * kLanes, of += 3) {
          lines.template codes<kLines>(stripe, tile, first, s, [&](int i, int g, I code) QK_INLINE_LAMBDA {
            d[g] = fused(table(code), load(from + i * kLanes), d[g]);
          });
          if (of[2]) {
            const F scale = load(w.scale + (stripe * w.G + of[0]) * kStripe), other = load(w.scale + (stripe * w.G + of[1]) * kStripe);
            for (int g = 0; g < kLines; g++) total[g] = fused(d[g], of_row(scale, other, first + g), total[g]), d[g] = F(0.0f);
          }
        }
      }
      for (int g = 0; g < kLines; g++) store(sums[first + g], total[g]);
    }
    for (int r = 0; r < kStripe; r++) {
      const float* e = sums[r % 8] + r / 8 * 2;
      rows[r] = ((e[0] + e[4]) + (e[8] + e[12])) + ((e[1] + e[5]) + (e[9] + e[13]));
    }
    write(w, stripe, load(rows), bias, y, 0);
  }
}

// R stripes from `stripe` on, times M activation rows, x [K][M]: from the words to the sums, all in registers. Those at
// `end` and beyond are computed as the last one again, and not written.
template <int bits, class Levels, int R, int M>
void direct(const Packed& w, int64_t stripe, int64_t end, const float* x, const float* bias, float* y) {
  const Levels table(w);
  Sums<R, M> sums;
  over_columns<bits, R>(w, stripe, end, [&](int64_t k, int i, int r, I code) QK_INLINE_LAMBDA {
    const F level = table(code);
    for (int m = 0; m < M; m++) sums.d[r][m] = fused(level, F(x[(k + i) * M + m]), sums.d[r][m]);
  }, [&](int64_t, const F* scale) QK_INLINE_LAMBDA { sums.end_segment(scale); });
  for (int r = 0; r < R && stripe + r < end; r++)
    for (int m = 0; m < M; m++) finish(w, stripe + r, sums.total[r][m], bias, y + m * w.N);
}

// sums [M][R vectors] += (levels [columns][R vectors] times x [columns][M]) * scale.
template <int R, int M>
void tile(const float* levels, const float* x, int64_t columns, const F* scale, float* sums) {
  F d[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) d[r][m] = F(0.0f);
  for (int64_t k = 0; k < columns; k++) {
    F level[R];
    for (int r = 0; r < R; r++) level[r] = load(levels + (k * R + r) * kLanes);
    for (int m = 0; m < M; m++) {
      const F from(x[k * M + m]);
      for (int r = 0; r < R; r++) d[r][m] = fused(level[r], from, d[r][m]);
    }
  }
  for (int m = 0; m < M; m++)
    for (int r = 0; r < R; r++) {
      float* s = sums + (m * R + r) * kLanes;
      store(s, fused(d[r][m], scale[r], load(s)));
    }
}

using Tile = void (*)(const float*, const float*, int64_t, const F*, float*);
template <int M> Tile tile_of(int64_t rows) {
  if constexpr (M == 1) return tile<kPair, 1>;
  else return rows == M ? tile<kPair, M> : tile_of<M - 1>(rows);
}

// kPair stripes as above, times M activation rows in tiles of T, x [M / T rounded up][K rounded up to 32][T].
template <int bits, class Levels>
void shared(const Packed& w, int64_t stripe, int64_t end, const float* x, int64_t M, int64_t T, const float* bias,
                    float* y, float* sums) {
  constexpr int R = kPair;
  const Levels table(w);
  const int64_t padded = (w.K + kBlock - 1) / kBlock * kBlock, tiles = (M + T - 1) / T;
  const Tile multiply = tile_of<kTile>(T);
  memset(sums, 0, tiles * T * R * kLanes * sizeof(float));
  alignas(64) float levels[kSegment * R * kLanes];
  int64_t begin = 0;  // of the segment
  over_columns<bits, R>(w, stripe, end, [&](int64_t k, int i, int r, I code) QK_INLINE_LAMBDA {
    store(levels + ((k - begin + i) * R + r) * kLanes, table(code));
  }, [&](int64_t k, const F* scale) QK_INLINE_LAMBDA {
    for (int64_t i = 0; i < tiles; i++)
      multiply(levels, x + (i * padded + begin) * T, k - begin, scale, sums + i * T * R * kLanes);
    begin = k;
  });
  for (int64_t m = 0; m < M; m++)
    for (int r = 0; r < R && stripe + r < end; r++)
      finish(w, stripe + r, load(sums + (m * R + r) * kLanes), bias, y + m * w.N);
}

template <int bits, class Levels>
void linear_stripes(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias,
                    float* y, float* sums) {
  [[maybe_unused]] const auto each = [&](int R, auto kernel) {
    for (; begin < end; begin += R) kernel(w, begin, end, x, bias, y);
  };
#if QK_ISA == 512
  switch (M) {
    case 2: return each(2, direct<bits, Levels, 2, 2>);
    case 3: return each(2, direct<bits, Levels, 2, 3>);
    case 4: return each(2, direct<bits, Levels, 2, 4>);
    case 5: return each(2, direct<bits, Levels, 2, 5>);
    case 6: return each(1, direct<bits, Levels, 1, 6>);
    case 7: return each(1, direct<bits, Levels, 1, 7>);
    case 8: return each(1, direct<bits, Levels, 1, 8>);
  }
#elif QK_ISA == 2
  if (M == 2) return each(2, direct<bits, Levels, 2, 2>);
#endif
  for (; begin < end; begin += kPair) shared<bits, Levels>(w, begin, end, x, M, T, bias, y, sums);
}

template <int bits, class Levels>
void dequantize_stripes(const Packed& w, int64_t begin, int64_t end, float* out) {
  using C = Codes<bits>;
  const C codes(w);
  const Levels table(w);
  const int64_t blocks = (w.K + kBlock - 1) / kBlock;
  alignas(64) uint32_t words[C::kWords][kLanes];
  for (int64_t stripe = begin; stripe < end; stripe++)
    for (int64_t block = 0; block < blocks; block += C::kBlocks) {
      I loaded[C::kWords];
      codes.load(stripe, block, loaded);
      memcpy(words, loaded, sizeof words);
      for (int row = 0; row < lower(kStripe, w.N - stripe * kStripe); row++) {
        float* to = out + (stripe * kStripe + row) * w.K;
        for (int b = 0; b < lower(C::kBlocks, blocks - block); b++) {
          const int64_t first = (block + b) * kBlock;
          const F scale(w.scale[(stripe * w.G + first / w.group) * kStripe + row]);
          for (int t = 0; t < 4; t += 2) {
            const int64_t k = first + 8 * t;
            const F value = table(C::columns(words, b, t, row)) * scale + F(0.0f);  // never -0
            if (w.K - k >= kLanes) store(to + k, value);
            else if (w.K > k) store_part(to + k, value, w.K - k);
          }
        }
      }
    }
}

void dequantize(const Packed& w, int64_t begin, int64_t end, float* out) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    dequantize_stripes<kind.bits, typename decltype(kind)::Levels>(w, begin, end, out);
  });
}

// Floats and numbers that `spread` writes.
void room(const Packed& w, int64_t* floats, int64_t* numbers) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    if (kind.bits <= 2 && Nibbles<kind.bits>::fit(w)) {
      const int64_t words = Nibbles<kind.bits>::words(w.K);
      *floats = words * 32 * kLanes, *numbers = words * 2;
    } else {
      const int64_t units = Alone<kind.bits>::units(w.K);
      *floats = units * 8 * kLanes, *numbers = units * 3;
    }
  });
}

void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    if constexpr (kind.bits <= 2)
      if (Nibbles<kind.bits>::fit(w)) return Nibbles<kind.bits>::spread(w, x, to, groups);
    Alone<kind.bits>::spread(w, x, to, groups);
  });
}

void alone(const Packed& w, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    if constexpr (kind.bits <= 2)
      if (Nibbles<kind.bits>::fit(w)) {
        constexpr int R = QK_ISA == 512 ? 4 : 2;
        for (; begin < end; begin += R) nibbles<kind.bits, R>(w, begin, end, x, groups, bias, y);
        return;
      }
    alone<kind.bits, typename decltype(kind)::Levels>(w, begin, end, x, groups, bias, y);
  });
}

void linear(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias, float* y,
            float* sums) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    linear_stripes<kind.bits, typename decltype(kind)::Levels>(w, begin, end, x, M, T, bias, y, sums);
  });
}

}  // namespace

namespace qk {
extern const LutKernels QK_NAME(lut);
const LutKernels QK_NAME(lut) = {dequantize, room, spread, alone, linear, kTile, kPair};
}  // namespace qk
