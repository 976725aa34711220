// Integer activations times a packed weight whose levels are powers of sqrt(2), in integers: a level is
// unit * (a * even + b * odd) with small integers even and odd, one of them 0, so a sum of products is two sums of integers.
// Levels that are integers themselves have b = 0, and one sum.
// The layout of codes and scales is drawn in qkernels/pack.py.
#pragma once
#include <cstdint>

namespace qk {

struct LsqArgs;

struct PostWeight {
  const uint8_t* codes;
  const float* scale;  // [N/16][G][16]
  int bits;            // 4, or 8 with codes below 32
  int64_t N, K, group, G;
  bool is_signed;      // x is int8, and even and odd have kOffset on top; else x is uint8
  alignas(32) int8_t even[32], odd[32];  // by code
  int32_t a, b;

  int64_t blocks() const { return (K + 31) / 32; }  // of 32 columns
};

struct PostKernels {
  static constexpr int kOffset = 16;         // what even and odd do not exceed in size
  static constexpr int64_t kSegment = 4096;  // columns of a group whose sum int32 holds
  // Columns of stripes [begin, end) of y [M, N] = step * (x w^T) + bias.
  // x: [M][blocks][32], each eight columns of a block in the order of a word's bytes (post_column), 0 beyond K.
  // offset: [M][segments], what the offset of the tables adds to the sum over a segment; segments of groups in order.
  void (*linear)(const PostWeight&, int64_t begin, int64_t end, const uint8_t* x, int64_t M, const int32_t* offset,
                 const float* step, const float* bias, float* y);
};

// Rows [begin, end) of x [M, K], of a dtype as Output has it, to bytes: lsq's integers, of which `each` rows share a step.
// numbers[m]: whether there is no NaN in row m.
struct PostQuantize {
  void (*quantize)(const LsqArgs&, const void* x, int dtype, int64_t begin, int64_t end, int64_t K, int64_t each, const float* step,
                   uint8_t* to, char* numbers);
};

// The same on matrix tiles, null without their instructions: codes of 4 bits, and groups of a multiple of 64 columns, that is K of
// one. x: [tiles][K / 64][rows(M)][64], each eight columns as PostKernels has them.
struct PostAmx {
  static int64_t rows(int64_t M) { const int64_t tiles = (M + 15) / 16; return (M + tiles - 1) / tiles; }  // of a tile
  static constexpr int64_t kTiles = PostKernels::kSegment / 64, kBuffer = kTiles * 2048;  // T16 tiles of a segment; bytes
  // scratch: kBuffer bytes and M * 64 more, at a multiple of 64.
  void (*linear)(const PostWeight&, int64_t begin, int64_t end, const uint8_t* x, int64_t M, const float* step, const float* bias, float* y,
                 uint8_t* scratch);
};

// The column, of eight, whose code is in byte `i` % 4 of a word: 4 bits: in its low or, from i = 4 on, high nibble; 8 bits: of
// the first or the second word.
inline int post_column(int bits, int i) { return bits == 4 ? i % 4 * 2 + i / 4 : i; }

inline int64_t post_segments(const PostWeight& w) { return w.G * ((w.group + PostKernels::kSegment - 1) / PostKernels::kSegment); }

}  // namespace qk
