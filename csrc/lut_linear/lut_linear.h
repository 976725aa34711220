// A packed weight as the kernels see it: T16 codes, a table of levels, scales. The layout is drawn in qkernels/pack.py.
#pragma once
#include <cstdint>

namespace qk {

struct Packed {
  const uint8_t* codes;  // the planes, one after another
  const float* levels;   // [256], padded with zeros: a code never reads beyond it
  const float* scale;    // [N/16][G][16]
  int bits;              // 1, 2, 3, 4 or 8
  int64_t N, K;
  int64_t group;         // columns a scale: a multiple of 32, or K
  int64_t G;             // K / group
  bool uniform = false;  // level c is base + step * c, product and sum rounded once together
  float base = 0, step = 0;
};

constexpr int kStripe = 16;  // rows

struct LutKernels {
  // Rows of stripes [begin, end) of w [N, K] float32.
  void (*dequantize)(const Packed&, int64_t begin, int64_t end, float* w);
  // Columns of stripes [begin, end) of y [M, N] = x w^T + bias.
  // x: float32, in tiles of T rows, T <= tile: [M / T rounded up][K rounded up to 32][T], 0 where it is padded.
  // sums: scratch, [M rounded up to T][pair] vectors of 16 floats.
  void (*linear)(const Packed&, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias, float* y,
                 float* sums);
  int tile, pair;
};

// For bfloat16 activations, levels that are bfloat16 and not denormal, and up to 4 bits; null without the instruction. Its
// sums have another order, and what is denormal in them counts as 0.
struct LutPairs {
  static constexpr int kRows = 4;
  // x: [K rounded up to 32, / 2][M]: of octet o, entry 4 o + i holds column 8 o + i, and column 8 o + i + 4 in its upper half.
  void (*linear)(const Packed&, int64_t begin, int64_t end, const uint32_t* x, int64_t M, const float* bias, float* y);
};

}  // namespace qk
