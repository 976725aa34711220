// A packed weight as the kernels see it: T16 codes, a table of levels, scales. The layout is drawn in qkernels/pack.py.
#pragma once
#include <cstdint>
#include "../common/bits.h"

namespace qk {

// Values as their tensor has them; what reads them widens them.
struct Scales {
  const void* data = nullptr;
  int dtype = 0;  // as Output has it
  Scales() = default;
  QK_HD Scales(const float* values) : data(values) {}
  QK_HD Scales(const void* values, int dtype) : data(values), dtype(dtype) {}
  QK_HD float operator[](int64_t i) const {
    if (dtype == 0) return static_cast<const float*>(data)[i];
    const uint16_t bits = static_cast<const uint16_t*>(data)[i];
    return dtype == 1 ? to_float(half{bits}) : to_float(bfloat{bits});
  }
};

struct Packed {
  const uint8_t* codes;  // the planes, one after another
  const float* levels;   // [256], padded with zeros: a code never reads beyond it
  Scales scale;          // [N/16][G][16]
  int bits;              // 1, 2, 3, 4 or 8
  int64_t N, K;
  int64_t group;         // columns a scale: a multiple of 32, or K
  int64_t G;             // K / group
  // What lut_linear, but not lut_linear_int, fills in:
  bool narrow = false;   // levels are bfloat16
  bool prefers_bytes = false;  // for AVX2: this processor looks up bytes faster than it permutes floats
  bool uniform = false;  // level c is base + step * c, product and sum rounded once together
  float base = 0, step = 0;
};

constexpr int kStripe = 16;  // rows

struct Output {
  void* data;  // [M, N]
  int dtype;   // 0 float32, 1 float16, 2 bfloat16
};

struct LutKernels {
  // Rows of stripes [begin, end) of w [N, K] float32.
  void (*dequantize)(const Packed&, int64_t begin, int64_t end, float* w);
  // M > 1: columns of stripes [begin, end) of y [M, N] = x w^T + bias.
  // x: float32, in tiles of T rows, T <= tile: [M / T rounded up][K rounded up to 32][T], 0 where it is padded.
  // sums: scratch, [M rounded up to T][pair] vectors of 16 floats.
  void (*linear)(const Packed&, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias, Output y,
                 float* sums);
  int tile, pair;
};

// One row of x: spread out once, for which `room` says how much is needed; then columns of stripes [begin, end) of y [N].
struct LutAlone {
  void (*room)(const Packed&, int64_t* floats, int64_t* numbers);
  void (*spread)(const Packed&, const float* x, float* to, int32_t* groups);
  void (*linear)(const Packed&, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y);
};

// For bfloat16 activation rows and levels that are bfloat16 and not denormal, of up to 4 bits or, for two rows or more, evenly spaced ones of
// 8; null without the instruction.
// Its sums have another order, and what is denormal in them counts as 0.
struct LutPairs {
  static constexpr int kRows = 24;  // of a tile: their sums are in registers
  // x: [K rounded up to 32, / 2][height], 0 from row `rows` on: of octet o, entry 4 o + i holds column 8 o + i, and column 8 o + i + 4 in
  // its upper half. height: even, 2 to kRows.
  void (*linear)(const Packed&, int64_t begin, int64_t end, const uint32_t* x, int64_t rows, int64_t height, const float* bias, Output y);
  LutAlone alone;  // for one row, of 2 to 4 bits
};

// x as tiles of AMX-BF16 take it: a value is the sum of `parts` bfloat16 values, exactly (1, 2, 3 for bfloat16, float16, float32),
// and a tile is `each` rows of x, each as so many of its own. A row is not for tiles, and all 0, where a value is not finite or
// all are so small that what is denormal in the sums, which counts as 0, would be more than a rounding.
struct AmxRows {
  uint16_t* data;  // [tiles][blocks][each][parts][16][2]: see split_block
  int64_t M, K;
  int parts;
  int64_t blocks = (K + 31) / 32, most = 16 / parts, tiles = (M + most - 1) / most, each = (M + tiles - 1) / tiles;
  QK_HD int64_t height() const { return each * parts; }  // of a tile
  QK_HD uint16_t* block(int64_t tile, int64_t b) const { return data + (tile * blocks + b) * height() * 32; }
  QK_HD const uint8_t* bytes_of(int64_t tile, int64_t b) const { return reinterpret_cast<const uint8_t*>(block(tile, b)); }
  QK_HD uint16_t* row(int64_t m) const { return block(m / each, 0) + m % each * parts * 32; }  // in the first block
  QK_HD int64_t values() const { return tiles * blocks * height() * 32; }
  // Rows of x to take at a time: what an L2 cache holds, for they are walked over again for every few stripes.
  QK_HD int64_t held() const { const int64_t n = (5 << 18) / (blocks * 1024); return (n < 1 ? 1 : n) * most; }
};

// Levels as sums of as few bfloat16 values, exactly.
struct BfloatLevels {
  int parts = 1;
  uint16_t part[3][256] = {};  // the largest first
  float smallest = __builtin_inff();  // of the levels' sizes but 0
  bool fit = true;  // for tiles, to which what is denormal is 0: all are finite, and no part but 0 is denormal

  BfloatLevels(const float* levels, int count) {
    for (int c = 0; c < count; c++) {
      float rest = levels[c];
      const float size = rest < 0 ? -rest : rest;
      fit = fit && size < __builtin_inff();
      if (size > 0 && size < smallest) smallest = size;
      for (int p = 0; p < 3; p++) {
        const uint32_t upper = bits_of(rest) & 0xffff0000u;
        part[p][c] = uint16_t(upper >> 16);
        fit = fit && ((upper & 0x7fffffffu) == 0 || (upper & 0x7f800000u) != 0);
        if (rest != 0 && parts < p + 1) parts = p + 1;
        rest -= from_bits(upper);
      }
    }
  }
  // What the largest value of a row must reach, so that what is below 2**-126, and counts as 0, is no more than a rounding: of
  // products, and of x.
  float least() const { return 0x1p-80f / smallest > 0x1p-100f ? 0x1p-80f / smallest : 0x1p-100f; }
};

// Null without the instructions.
struct LutAmx {
  static constexpr int64_t kBuffer = 2 * 4 * 3 * 1024;  // bytes: see Decoder
  // Rows [begin, end) of x [M, K], of y's dtype; fits[m]: whether row m is for tiles. least: that of the levels.
  void (*split)(const AmxRows&, int64_t begin, int64_t end, const void* x, int dtype, float least, char* fits);
  // Columns of stripes [begin, end) of y = x w^T + bias.
  // scratch: kBuffer bytes, then as many as scratch() says.
  void (*linear)(const Packed&, const BfloatLevels&, int64_t begin, int64_t end, const AmxRows& x, const float* bias, Output y,
                 uint8_t* scratch);
  static int64_t scratch(const AmxRows& x) { return kBuffer + x.tiles * x.each * 2 * 64 + (x.tiles + 1) / 2 * 4096; }
};

}  // namespace qk
