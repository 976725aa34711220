// Packed weights on the CPU. A vector holds the sixteen rows of a stripe for one column, so a product takes one activation
// for all lanes, a scale is one load, and nothing is summed across lanes.
//
// The order of every sum, on every instruction set and for any number of activation rows: a segment is up to 128 columns
// of one group. Its products are added one column after another, product and sum with one rounding; segment times scale is
// added to the total in the same way, segment after segment; then the bias.
#include "lut_words.h"

namespace {

using qk::kStripe;

constexpr int kSegment = 128;
constexpr int kBlock = 32;  // columns of a sub-block

// How many vectors of sums are held in registers: kTile activation rows by kPair stripes. Up to kDirect rows multiply
// the levels as they come out of the table; more share what is decoded into a buffer that stays in the L1 cache.
#if QK_ISA == 512
constexpr int kTile = 12, kPair = 2, kDirect = 4;
#elif QK_ISA == 2
constexpr int kTile = 6, kPair = 1, kDirect = 2;
#else
constexpr int kTile = 4, kPair = 1, kDirect = 1;
#endif

QK_IN int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

// The segments of a row, one after another.
struct Segment {
  int64_t end, group_end, group;  // columns, columns, index
  QK_HD explicit Segment(const Packed& w) : end(lower(kSegment, w.group)), group_end(w.group), group(0) {}
  QK_HD void next(const Packed& w) {
    if (end == group_end) group_end += w.group, group++;
    end = lower(end + kSegment, group_end);
  }
  QK_HD F scale(const Packed& w, int64_t stripe) const { return load(w.scale + (stripe * w.G + group) * kStripe); }
};

// The rows of a stripe that exist, of one activation row.
QK_IN void finish(const Packed& w, int64_t stripe, F total, const float* bias, float* y) {
  const int64_t n = stripe * kStripe, rows = lower(kStripe, w.N - n);
  if (rows == kStripe) {
    store(y + n, bias ? total + load(bias + n) : total);
  } else {
    store_part(y + n, bias ? total + load_part(bias + n, rows) : total, rows);
  }
}

// R stripes times M activation rows, x [K][M]: from the words to the sums, all in registers.
template <int bits, int R, int M>
QK_LONG void direct(const Packed& w, int64_t stripe, const float* x, const float* bias, float* y) {
  using C = Codes<bits>;
  const C codes(w);
  const Table<bits> table(w.levels);
  const int64_t blocks = (w.K + kBlock - 1) / kBlock;
  I words[R][C::kWords];
  F d[R][M], total[R][M];
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) total[r][m] = d[r][m] = F(0.0f);
  Segment segment(w);
  for (int64_t block = 0; block < blocks; block += C::kBlocks) {
    for (int r = 0; r < R; r++) codes.load(stripe + r, block, words[r]);
    unroll<C::kBlocks>([&](auto b) QK_INLINE_LAMBDA {
      if (block + b >= blocks) return;
      const float* from = x + (block + b) * kBlock * M;
      for (int t = 0; t < 4; t++, from += 8 * M) {
        codes.template prefetch<R>(stripe, block + b, t);
        C::template octet<R, b>(words, t, [&](int i, int r, I code) QK_INLINE_LAMBDA {
          const F level = table(code);
          for (int m = 0; m < M; m++) d[r][m] = fused(level, F(from[i * M + m]), d[r][m]);
        });
      }
      if ((block + b + 1) * kBlock >= segment.end) {
        for (int r = 0; r < R; r++) {
          const F scale = segment.scale(w, stripe + r);
          for (int m = 0; m < M; m++) {
            total[r][m] = fused(d[r][m], scale, total[r][m]);
            d[r][m] = F(0.0f);
          }
        }
        segment.next(w);
      }
    });
  }
  for (int r = 0; r < R; r++)
    for (int m = 0; m < M; m++) finish(w, stripe + r, total[r][m], bias, y + m * w.N);
}

// sums [M][R vectors] += (levels [columns][R vectors] times x [columns][M]) * scale.
template <int R, int M>
QK_LONG void tile(const float* levels, const float* x, int64_t columns, const F* scale, float* sums) {
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
template <int R, int... m> QK_IN Tile tile_of(Ints<m...>, int64_t rows) {
  static constexpr Tile all[] = {tile<R, m + 1>...};
  return all[rows - 1];
}

// R stripes times M activation rows in tiles of T, x [M / T rounded up][K rounded up to 32][T].
template <int bits, int R>
QK_LONG void shared(const Packed& w, int64_t stripe, const float* x, int64_t M, int64_t T, const float* bias, float* y,
                    float* sums) {
  using C = Codes<bits>;
  const C codes(w);
  const Table<bits> table(w.levels);
  const int64_t blocks = (w.K + kBlock - 1) / kBlock, tiles = (M + T - 1) / T;
  const Tile multiply = tile_of<R>(typename Range<kTile>::type{}, T);
  memset(sums, 0, tiles * T * R * kLanes * sizeof(float));
  I words[R][C::kWords];
  alignas(64) float levels[kSegment * R * kLanes];
  Segment segment(w);
  int64_t start = 0;  // of the segment
  for (int64_t block = 0; block < blocks; block += C::kBlocks) {
    for (int r = 0; r < R; r++) codes.load(stripe + r, block, words[r]);
    unroll<C::kBlocks>([&](auto b) QK_INLINE_LAMBDA {
      const int64_t k = (block + b) * kBlock;
      if (block + b >= blocks) return;
      for (int t = 0; t < 4; t++) {
        float* to = levels + (k - start + 8 * t) * R * kLanes;
        codes.template prefetch<R>(stripe, block + b, t);
        C::template octet<R, b>(words, t, [&](int i, int r, I code) QK_INLINE_LAMBDA {
          store(to + (i * R + r) * kLanes, table(code));
        });
      }
      if (k + kBlock >= segment.end) {
        F scale[R];
        for (int r = 0; r < R; r++) scale[r] = segment.scale(w, stripe + r);
        for (int64_t i = 0; i < tiles; i++)
          multiply(levels, x + (i * blocks * kBlock + start) * T, k + kBlock - start, scale, sums + i * T * R * kLanes);
        start = k + kBlock;
        segment.next(w);
      }
    });
  }
  for (int64_t m = 0; m < M; m++)
    for (int r = 0; r < R; r++) finish(w, stripe + r, load(sums + (m * R + r) * kLanes), bias, y + m * w.N);
}

// As many stripes at a time as there are, R at most.
template <int bits, int R, int M>
void direct_stripes(const Packed& w, int64_t begin, int64_t end, const float* x, const float* bias, float* y) {
  for (; begin + R <= end; begin += R) direct<bits, R, M>(w, begin, x, bias, y);
  if constexpr (R > 1) direct_stripes<bits, R / 2, M>(w, begin, end, x, bias, y);
}

template <int bits>
void linear_stripes(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias,
                    float* y, float* sums) {
  if (M == 1) return direct_stripes<bits, kDirect, 1>(w, begin, end, x, bias, y);
  if constexpr (kDirect >= 2) if (M == 2) return direct_stripes<bits, 2, 2>(w, begin, end, x, bias, y);
  if constexpr (kDirect >= 4) {
    if (M == 3) return direct_stripes<bits, 2, 3>(w, begin, end, x, bias, y);
    if (M == 4) return direct_stripes<bits, 2, 4>(w, begin, end, x, bias, y);
  }
  for (; begin + kPair <= end; begin += kPair) shared<bits, kPair>(w, begin, x, M, T, bias, y, sums);
  for (; begin < end; begin++) shared<bits, 1>(w, begin, x, M, T, bias, y, sums);
}

template <int bits>
void dequantize_stripes(const Packed& w, int64_t begin, int64_t end, float* out) {
  using C = Codes<bits>;
  const C codes(w);
  const Table<bits> table(w.levels);
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

template <int bits> struct Width { static constexpr int value = bits; };
template <class Body> QK_IN void for_width(int bits, Body&& body) {
  switch (bits) {
    case 1: return body(Width<1>{});
    case 2: return body(Width<2>{});
    case 3: return body(Width<3>{});
    case 4: return body(Width<4>{});
    case 8: return body(Width<8>{});
  }
}

void dequantize(const Packed& w, int64_t begin, int64_t end, float* out) {
  for_width(w.bits, [&](auto width) QK_INLINE_LAMBDA { dequantize_stripes<width.value>(w, begin, end, out); });
}

void linear(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias, float* y,
            float* sums) {
  for_width(w.bits, [&](auto width) QK_INLINE_LAMBDA { linear_stripes<width.value>(w, begin, end, x, M, T, bias, y, sums); });
}

}  // namespace

namespace qk {
extern const LutKernels QK_NAME(lut);
const LutKernels QK_NAME(lut) = {dequantize, linear, kTile, kPair};
}  // namespace qk
