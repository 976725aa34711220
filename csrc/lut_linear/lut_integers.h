// A product in integers: levels that are small multiples of one unit, as those of LSQ, CPQ and DAQ are, times values of x that are
// rounded to multiples of a power of two. Sums of a segment are exact, whatever their order; their conversion to float32 rounds.
#pragma once
#include "lut_linear.h"

namespace qk {

// Where the segment that holds `column` ends: with its group, or with 128 columns.
QK_HD int64_t segment_end(int64_t column, int64_t group, int64_t K) {
  const int64_t full = (column / 128 + 1) * 128, own = (column / group + 1) * group, first = full < own ? full : own;
  return first < K ? first : K;
}

// Levels as integers times a unit, exactly.
struct IntegerLevels {
  bool fit = false;     // for these kernels: `affine`; or of up to 4 bits, and none above 127 units in size
  bool affine = false;  // a level is base + factor * code, none above 255 units in size: the codes themselves are multiplied
  int32_t base = 0, factor = 1;
  int8_t table[16] = {};  // else by code
  float unit = 1;

  IntegerLevels(const float* levels, int count, int bits) {
    uint32_t most = 0, below = ~0u;  // the largest size as bits, and the smallest less 1, where 0 is none
    for (int c = 0; c < count; c++) {
      const uint32_t size = bits_of(levels[c]) & 0x7fffffff;
      most = size > most ? size : most, below = size - 1 < below ? size - 1 : below;
    }
    const uint32_t exponent = (below + 1) >> 23 ? (below + 1) >> 23 : 1;  // of the smallest, as bits
    if (most >= 0x7f800000 || most >> 23 > exponent + 8) return;          // not finite; more than 255 times as large
    const int least = most ? int(exponent) - 150 : 0;                     // all are integers times 2**least
    const double up = __builtin_ldexp(1.0, -least), first = double(levels[0]) * up, by = count > 1 ? double(levels[1]) * up - first : 0;
    affine = true;
    for (int c = 2; c < count; c++) affine &= double(levels[c]) * up - double(levels[c - 1]) * up == by;
    if (!affine && bits > 4) return;
    int64_t all = affine ? divisor(int64_t(first), int64_t(by)) : 0;
    for (int c = 0; c < count && !affine; c++) all = divisor(all, int64_t(double(levels[c]) * up));
    if (all == 0) all = 1;
    const int64_t size = int64_t(double(from_bits(most)) * up);
    unit = float(double(all) * __builtin_ldexp(1.0, least));
    affine = affine && size <= 255 * all;
    fit = (affine || (bits <= 4 && size < 128 * all)) && double(unit) * up == double(all);
    if (affine) base = int32_t(int64_t(first) / all), factor = int32_t(int64_t(by) / all);
    else if (fit) for (int c = 0; c < 16; c++) table[c] = int8_t(int64_t(double(levels[c & ((1 << bits) - 1)]) * up) / all);
  }
  static int64_t divisor(int64_t a, int64_t b) {  // the greatest of both
    for (a = a < 0 ? -a : a, b = b < 0 ? -b : b; b;) { const int64_t rest = a % b; a = b, b = rest; }
    return a;
  }
};

// x as integers times a step, a power of two, of each row's segment: of four digits in base 256, -128 to 127, the lowest first; of three
// if x has 16 bits, of which those are then exact that are not below 2**-11 of the largest value (bfloat16: 2**-14). They are rounded to
// multiples of 2**-29 (2**-21) of the power of two at or below the largest value of the segment, so by at most 2**-30 (2**-22) of it;
// which is at most 2**-23 of most values, for a row in which it is not is not for these kernels.
struct IntegerRows {
  struct Segment {
    float step;         // times the unit of the levels
    int32_t high, low;  // the integers' upper and lower halves, summed, times the base of the levels
  };
  uint8_t* data = nullptr;       // [tiles][units][each][digits][32 depth columns], bytes in the order of Quads; without AVX-512 see Halves16
                                 // paired, on any: [tiles of codes][s][digits][8 quads][w], of sub-block w * steps + s of a tile,
                                 // s < steps, w < 2: s is a unit of depth 2
  Segment* segments = nullptr;   // [tiles][cuts][each]
  uint8_t* lowest = nullptr;     // marked: [tiles][units][each], bit i: whether digit 0 of quad i is not 0; of 16-bit x it mostly is 0
  int64_t M, K, group;
  int bits, digits;
  bool for_tiles;
  bool paired = false;  // one row of 2 to 4 bits, for LutIntegersEights and LutIntegersBytes
  bool turned = false;  // for LutIntegersTurned: filled up to whole tiles of codes
  bool marked = paired || turned;  // `lowest` is filled in
  int depth = paired || (for_tiles && (group % 64 == 0 || group == K)) ? 2 : 1;  // sub-blocks of 32 columns in a unit
  int64_t most = (turned ? 9 : 16) / digits;  // rows of a tile
  int64_t tiles = (M + most - 1) / most, each = (M + tiles - 1) / tiles;
  // columns that K is filled up to a multiple of
  int64_t whole = paired || (turned && bits < 8) ? 256 / (bits == 3 ? 2 : bits) : 32 * depth;
  int64_t units = (K + whole - 1) / whole * (whole / (32 * depth)), cuts = (K + 127) / 128 + K / group;  // or fewer
  QK_HD int64_t height() const { return each * digits; }   // of a tile
  QK_HD int64_t stride() const { return 32 * depth; }      // bytes of a digit
  QK_HD int64_t steps() const { return bits == 3 ? 2 : 4 / bits; }  // paired
  QK_HD int64_t unit_of(int64_t b) const { return paired ? b / (2 * steps()) * steps() + b % steps() : b >> (depth - 1); }  // sub-block b
  QK_HD uint8_t* bytes_of(int64_t tile, int64_t b) const {  // the same of the first row, digit 0
    const int64_t from = paired ? b / steps() % 2 * 4 : (b & (depth - 1)) * 32;
    return data + (tile * units + unit_of(b)) * height() * stride() + from;
  }
  QK_HD uint8_t* lowest_of(int64_t tile, int64_t b) const { return lowest + (tile * units + unit_of(b)) * each; }  // the first row's
  QK_HD Segment* segment(int64_t tile, int64_t s) const { return segments + (tile * cuts + s) * each; }
  QK_HD int64_t bytes() const { return tiles * units * each * 4 * stride(); }  // of three digits less is used, but as Halves16
  QK_HD int64_t room() const { return bytes() + tiles * cuts * each * int64_t(sizeof(Segment)) + (marked ? tiles * units * each : 0); }
  QK_HD void place(uint8_t* memory) {
    data = memory, segments = reinterpret_cast<Segment*>(memory + bytes());
    lowest = reinterpret_cast<uint8_t*>(segments + tiles * cuts * each);
  }
  QK_HD int64_t held() const {  // as AmxRows has it
    const int64_t n = (5 << 18) / (units * stride() * 16);
    return (n < 1 ? 1 : n) * most;
  }
};

struct LutIntegers {
  // Rows [begin, end) of x [M, K], of a dtype as Output has it; fits[m]: whether row m is for these kernels: finite; no segment so
  // small or large that its step or its sums leave the range of float32, and in none most values are below 2**-7 of the largest.
  // Else it is zeros.
  void (*split)(const IntegerRows&, const IntegerLevels&, int64_t begin, int64_t end, const void* x, int dtype, char* fits);
  // One row of x, not for tiles, paired nor turned, affine levels of 2 bits or more: columns of stripes [begin, end) of y = x w^T + bias.
  // For 1 bit LutAlone's tables of nibbles are faster.
  void (*alone)(const Packed&, const IntegerLevels&, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y);
};

// As `alone`, of 2 bits (groups of a multiple of 128 columns, or the row), 4 bits (64) and 8 bits, x paired but of 8 bits, with the
// same bits. Needs AVX-512 VNNI and GFNI.
struct LutIntegersEights {
  decltype(LutIntegers::alone) alone;
  static bool takes(const Packed& w) { return w.bits == 8 || ((w.bits == 2 || w.bits == 4) && (w.group == w.K || w.group % (256 / w.bits) == 0)); }
};

// The same and 3 bits (128), x turned, of any rows. Needs AVX-512 VNNI. Where there are both, LutIntegersEights takes what it can.
struct LutIntegersTurned {
  decltype(LutIntegers::alone) linear;
  static bool takes(const Packed& w) { return LutIntegersEights::takes(w) || (w.bits == 3 && (w.group == w.K || w.group % 128 == 0)); }
};

// The same but for 8 bits, x of up to `digits` digits, paired. Needs AVX2, or AVX-512 without VNNI.
struct LutIntegersBytes {
  decltype(LutIntegers::alone) alone;
  int digits;
  bool takes(const Packed& w, int count) const { return count <= digits && w.bits < 8 && LutIntegersTurned::takes(w); }
};

// Any rows, for tiles as AVX-512's kernel splits them, and all levels that fit. Null without the instructions.
struct LutIntegersAmx {
  static constexpr int64_t kBuffer = 2 * 8 * 2 * 512;  // bytes: see Decoder
  void (*linear)(const Packed&, const IntegerLevels&, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y,
                 uint8_t* scratch);
  static int64_t scratch(const IntegerRows& x) { return kBuffer + x.tiles * x.each * 2 * 64; }
};

}  // namespace qk
