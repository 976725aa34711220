// Packed weights on the CPU. A vector holds the sixteen rows of a stripe for one column, so a product takes one activation
// for all lanes, a scale is one load, and nothing is summed across lanes.
//
// The order of every sum, on every instruction set and for any number of activation rows: a segment is up to 128 columns
// of one group. Its products are added one column after another, product and sum with one rounding; segment times scale is
// added to the total in the same way, segment after segment; then the bias.
#pragma once
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

// R stripes from `stripe` on, times M activation rows, x [K][M]: from the words to the sums, all in registers. Those at
// `end` and beyond are computed as the last one again, and not written.
template <int bits, class Levels, int R, int M>
void direct(const Packed& w, int64_t stripe, int64_t end, const float* x, const float* bias, Output y) {
  const Levels table(w);
  Sums<R, M> sums;
  over_columns<bits, R>(w, stripe, end, [&](int64_t k, int i, int r, Code code) QK_INLINE_LAMBDA {
    const F level = table(code);
    for (int m = 0; m < M; m++) sums.d[r][m] = fused(level, F(x[(k + i) * M + m]), sums.d[r][m]);
  }, [&](int64_t, const F* scale) QK_INLINE_LAMBDA { sums.end_segment(scale); });
  for (int r = 0; r < R && stripe + r < end; r++)
    for (int m = 0; m < M; m++) write(w, stripe + r, sums.total[r][m], bias, y, m);
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
                    Output y, float* sums) {
  constexpr int R = kPair;
  const Levels table(w);
  const int64_t padded = (w.K + kBlock - 1) / kBlock * kBlock, tiles = (M + T - 1) / T;
  const Tile multiply = tile_of<kTile>(T);
  memset(sums, 0, tiles * T * R * kLanes * sizeof(float));
  alignas(64) float levels[kSegment * R * kLanes];
  int64_t begin = 0;  // of the segment
  over_columns<bits, R>(w, stripe, end, [&](int64_t k, int i, int r, Code code) QK_INLINE_LAMBDA {
    store(levels + ((k - begin + i) * R + r) * kLanes, table(code));
  }, [&](int64_t k, const F* scale) QK_INLINE_LAMBDA {
    for (int64_t i = 0; i < tiles; i++)
      multiply(levels, x + (i * padded + begin) * T, k - begin, scale, sums + i * T * R * kLanes);
    begin = k;
  });
  for (int64_t m = 0; m < M; m++)
    for (int r = 0; r < R && stripe + r < end; r++)
      write(w, stripe + r, load(sums + (m * R + r) * kLanes), bias, y, m);
}

template <int bits, class Levels>
void linear_stripes(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias,
                    Output y, float* sums) {
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
  if constexpr (bits < 8) {  // of 8 bits a table takes sixteen registers, and what needs none was not timed
    switch (M) {
      case 9: return each(1, direct<bits, Levels, 1, 9>);
      case 10: return each(1, direct<bits, Levels, 1, 10>);
      case 11: return each(1, direct<bits, Levels, 1, 11>);
      case 12: return each(1, direct<bits, Levels, 1, 12>);
    }
  }
#elif QK_ISA == 2
  switch (M) {
    case 2: return each(2, direct<bits, Levels, 2, 2>);
    case 3: return each(1, direct<bits, Levels, 1, 3>);
    case 4: return each(1, direct<bits, Levels, 1, 4>);
    case 5: return each(1, direct<bits, Levels, 1, 5>);
  }
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

}  // namespace
