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
};

constexpr int kStripe = 16;  // rows
constexpr int kSpan = 256;   // columns decoded at a time: one tile of a 1-bit plane, eight of an 8-bit plane

struct LutKernels {
  // Rows of stripes [begin, end) of w [N, K] float32.
  void (*dequantize)(const Packed&, int64_t begin, int64_t end, float* w);
  // Columns of stripes [begin, end) of y [M, N] = x w^T + bias; x [M, ld] float32, zero from K to the next multiple of 16.
  // sums: scratch, [M][16] vectors of 16 floats.
  void (*linear)(const Packed&, int64_t begin, int64_t end, const float* x, int64_t M, int64_t ld, const float* bias, float* y,
                 float* sums);
};

}  // namespace qk
