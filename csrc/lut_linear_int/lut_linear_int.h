// Integer activations times a packed weight whose levels are integers, or powers of sqrt(2), of one unit: in integers. A level is
// unit * (a * even + b * odd + c) with bytes even and odd by code, of evenly spaced levels the code itself. So a sum of products is
// one or two sums of integers, and c times the sum of x.
// The layout of codes and scales is drawn in qkernels/pack.py.
#pragma once
#include "../lut_linear/lut_linear.h"

namespace qk {

struct LsqArgs;
struct DaqArgs;

// What codes of a weight become that meets signed or unsigned x. The products of bytes take one unsigned and one signed factor:
// weights are unsigned where x is signed, and else signed.
struct ByteLevels {
  static constexpr int kMost = 16, kMostEven = 255;  // of even and odd in size; of evenly spaced levels
  bool x_signed;
  bool fit = true;             // that, and of tables up to 32 codes
  int tables = 0;              // 0: bytes are codes, of 8 bits less 128 for unsigned x; 1: even; 2: even and odd
  int8_t even[32], odd[32];    // by code, and for signed x kMost more
  int32_t a, b, c;

  ByteLevels(const float* evens, const float* odds, int count, int32_t a, int32_t b, int bits, bool is_signed)
      : x_signed(is_signed), a(a), b(b), c(is_signed ? -kMost * (a + b) : 0) {
    const auto within = [&](int most) {
      const auto fits = [&](float v) { return v >= float(-most) && v <= float(most) && v == float(int(v)); };
      bool all = true;
      for (int i = 0; i < count; i++) all = all && fits(evens[i]) && fits(odds[i]);
      return all;
    };
    const auto level = [&](int i) { return float(a) * evens[i] + float(b) * odds[i]; };  // exactly
    const float by = count > 1 ? level(1) - level(0) : 0;
    bool spaced = within(kMostEven);
    for (int i = 2; i < count; i++) spaced = spaced && level(i) - level(i - 1) == by;
    for (int i = 0; i < 32; i++) even[i] = odd[i] = int8_t(is_signed ? kMost : 0);
    if (spaced) {
      this->a = int32_t(by), this->b = 0, c = int32_t(level(0)) + (bits == 8 && !is_signed ? 128 * this->a : 0);
      return;
    }
    tables = b ? 2 : 1, fit = count <= 32 && within(kMost);
    for (int i = 0; i < count && fit; i++) even[i] = int8_t(even[i] + int(evens[i])), odd[i] = int8_t(odd[i] + int(odds[i]));
  }
};

// x as bytes, `each` rows a tile: [tiles][units][each][32 depth columns], each eight columns in the order of Quads, 0 beyond K.
struct ByteRows {
  static constexpr int64_t kSegment = 4096;  // columns of a group whose sum int32 holds
  int64_t M, K, group;
  int64_t most;  // rows of a tile
  int depth;     // sub-blocks of 32 columns of a unit: 1 or 2
  const float* step;  // [M]: of a row, times the unit of the levels
  int64_t tiles = (M + most - 1) / most, each = (M + tiles - 1) / tiles, units = (K + 32 * depth - 1) / (32 * depth);
  int64_t of_group = (group + kSegment - 1) / kSegment, segments = K / group * of_group;
  uint8_t* data = nullptr;
  int32_t* more = nullptr;  // [segments][tiles][each]: c times the sum over a segment; segments of groups in order
  QK_HD int64_t height() const { return each; }
  QK_HD int64_t stride() const { return 32 * depth; }
  int64_t bytes() const { return tiles * units * each * stride(); }
  int64_t room() const { return bytes() + segments * tiles * each * int64_t(sizeof(int32_t)); }
  void place(uint8_t* memory) { data = memory, more = reinterpret_cast<int32_t*>(memory + bytes()); }
  QK_HD const uint8_t* bytes_of(int64_t tile, int64_t b) const {  // sub-block b of the first row
    return data + (tile * units + (b >> (depth - 1))) * each * stride() + (b & (depth - 1)) * 32;
  }
  QK_HD int32_t* more_of(int64_t tile, int64_t segment) const { return more + (segment * tiles + tile) * each; }
  int64_t held() const { return ((1 << 20) / K + most) / most * most; }  // rows to take at a time: what an L2 cache holds
};

// Columns of stripes [begin, end) of y [M, N] = step * (x w^T) + bias.
struct LutInt {
  void (*linear)(const Packed&, const ByteLevels&, int64_t begin, int64_t end, const ByteRows& x, const float* bias, float* y,
                 uint8_t* scratch);
  int64_t most;  // rows of a tile, of units of one sub-block
  static int64_t scratch(const ByteRows& x) { return 2 * ByteRows::kSegment * kStripe + x.tiles * x.each * 64; }
};

// The same on matrix tiles of 16 rows, null without their instructions; of units of two sub-blocks where groups allow it.
struct LutIntAmx {
  static constexpr int64_t kBuffer = 2 * 8 * 1024;  // bytes: see Decoder
  decltype(LutInt::linear) linear;
  static int64_t scratch(const ByteRows& x) { return kBuffer + x.tiles * x.each * 2 * 64 + (x.tiles + 1) / 2 * 4096; }
};

// Rows [begin, end) of x [M, K], of a dtype as Output has it, to bytes: integers of lsq or daq, of which `each` rows share parameters.
// numbers[m]: whether there is no NaN in row m.
struct LutIntQuantize {
  template <class Args>
  using Rows = void (*)(const Args&, const void* x, int dtype, int64_t begin, int64_t end, int64_t K, int64_t each,
                        const float* const* params, uint8_t* to, char* numbers);
  Rows<LsqArgs> lsq;
  Rows<DaqArgs> daq;
};

}  // namespace qk
