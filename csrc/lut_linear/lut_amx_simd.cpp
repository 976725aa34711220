// Activation rows times a packed weight by AMX-BF16: tiles of 16 x 16 sums. Sixteen rows of the weight times 32 columns are
// one tile, in pairs: columns i and i + 4 of an octet, whose codes lie 16 bits apart in a word, so that one shift and one
// permutation give 32 levels. They go through memory, the only way into a tile.
//
// Nothing is rounded to bfloat16: a value of x is the sum of up to three of them, its parts, which are rows of their own,
// and so is a level. Products of parts are exact; sums are float32.
//
// The order of every sum: columns 0 to 31 of a block in two chains (see tile_dot), for each part of the levels, the largest
// first; blocks one after another up to the end of a group or a multiple of 128 columns; the parts of x, the smallest first;
// that times the scale is added to the total; then the bias. The same for a row in any batch.
#include "../common/simd.h"
#include "lut_linear.h"

#if QK_ISA == 512 && !defined(__clang__)
#include "../common/amx.h"
#include "lut_parts.h"

namespace {

using qk::AmxLevels;
using qk::AmxRows;

constexpr int kStripes = 2;       // at a time, and as many tiles of x: four tiles of sums
constexpr int kTileBytes = 1024;  // of a tile of the weight
static_assert(kSegment == 4 * kBlock);

// ---------------------------------------------------------------- x
template <int parts, class T> void split_rows(const AmxRows& rows, int64_t begin, int64_t end, const void* x, float least, char* fits) {
  for (int64_t m = begin; m < end; m++)
    fits[m] = split_row<parts>(static_cast<const T*>(x) + m * rows.K, rows.K, least, [&](int64_t b, int p, __m512i pairs) QK_INLINE_LAMBDA {
      _mm512_storeu_si512(rows.row(m) + b * rows.height() * 32 + p * 32, pairs);
    });
}

void split(const AmxRows& rows, int64_t begin, int64_t end, const void* x, int dtype, float least, char* fits) {
  if (dtype == 0) split_rows<3, float>(rows, begin, end, x, least, fits);
  else if (dtype == 1) split_rows<2, qk::half>(rows, begin, end, x, least, fits);
  else split_rows<1, qk::bfloat>(rows, begin, end, x, least, fits);
}

// ---------------------------------------------------------------- the weight
// Pairs of levels by pairs of codes: up to 4 bits by tables of bfloat16.
template <int bits, class Levels, int parts> struct Pairs {
  __m512i table[parts];
  explicit Pairs(const Packed&, const AmxLevels& levels) {
    for (int p = 0; p < parts; p++) {
      uint16_t all[32];  // only the lowest bits of an index are the code
      for (int i = 0; i < 32; i++) all[i] = levels.part[p][i & ((1 << bits) - 1)];
      table[p] = _mm512_loadu_si512(all);
    }
  }
  // Sub-block `first + s` of a unit: to [part][16 pairs][16 rows]
  QK_HD void block(const I (&words)[1][Codes<bits>::kWords], int first, int s, uint8_t* to) const {
    for (int t = 0; t < 4; t++)
      Codes<bits>::template octet<4>(words, first, s, t, [&](int i, int, I code) QK_INLINE_LAMBDA {
        for (int p = 0; p < parts; p++)
          _mm512_store_si512(to + p * kTileBytes + (4 * t + i) * 64, _mm512_permutexvar_epi16(code.v, table[p]));
      });
  }
};
template <class Levels, int parts> struct Pairs<8, Levels, parts> {  // 8 bits: as floats first
  Levels table;
  explicit Pairs(const Packed& w, const AmxLevels&) : table(w) {}
  QK_HD void block(const I (&words)[1][Codes<8>::kWords], int, int, uint8_t* to) const {
    const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
    for (int t = 0; t < 4; t++)
      QK_UNROLL for (int i = 0; i < 4; i++) {
        F low = table(right(words[0][t], 8 * i)), high = table(right(words[0][4 + t], 8 * i));
        for (int p = 0; p < parts; p++) {
          const __m512i a = _mm512_castps_si512(low.v), b = _mm512_castps_si512(high.v);
          _mm512_store_si512(to + p * kTileBytes + (4 * t + i) * 64, _mm512_ternarylogic_epi32(upper, b, _mm512_srli_epi32(a, 16), 0xca));
          low = low - F(_mm512_castsi512_ps(_mm512_and_si512(a, upper)));
          high = high - F(_mm512_castsi512_ps(_mm512_and_si512(b, upper)));
        }
      }
  }
};

// kStripes stripes in chunks: kBlocks sub-blocks of each are decoded into one half of a buffer while those of the other half
// are multiplied. A unit is what Codes loads at a time.
template <int bits, class Levels, int parts> struct Decoder {
  using C = Codes<bits>;
  static constexpr int kBlocks = C::kBlocks > 4 ? C::kBlocks : 4, kUnits = kStripes * (kBlocks / C::kBlocks);
  static constexpr int kTile = parts * kTileBytes;  // bytes of a sub-block
  static constexpr int kBytes = kBlocks * kStripes * kTile;
  const C codes;
  const Pairs<bits, Levels, parts> pairs;
  const int64_t blocks;
  int64_t at[kStripes];
  uint8_t* const buffer;  // [2][kBlocks][kStripes][parts][kTileBytes]
  Decoder(const Packed& w, const AmxLevels& levels, int64_t first, int64_t last, uint8_t* to)
      : codes(w), pairs(w, levels), blocks((w.K + kBlock - 1) / kBlock), buffer(to) {
    for (int r = 0; r < kStripes; r++) at[r] = lower(first + r, last - 1);
  }

  uint8_t* half(int64_t chunk) const { return buffer + (chunk / kBlocks % 2 ? kBytes : 0); }
  // Unit `unit` of the chunk that starts with sub-block `chunk`, which goes to `to`.
  QK_HD void unit(int64_t chunk, int unit, uint8_t* to) const {
    const int r = unit % kStripes, first = unit / kStripes * C::kBlocks;
    if (chunk + first >= blocks) return;
    I words[1][C::kWords];
    codes.load(at[r], chunk + first, words[0]);
    for (int b = 0; b < C::kBlocks; b++)
      for (int t = 0; t < 4; t++) codes.template prefetch<kStripes>(at[r], chunk + first + b, t);
    const auto local = pairs;  // in registers: what is stored could lie anywhere
    to += (first * kStripes + r) * kTile;
    for (int f = 0; f < C::kBlocks; f += C::kSteps)  // the last ones may lie beyond the row, and are not used then
      QK_UNROLL for (int s = 0; s < C::kSteps; s++) local.block(words, f, s, to + (f + s) * (kStripes * kTile));
  }
};

// ---------------------------------------------------------------- sums
// Tiles 0 to 3 are sums: of stripe r and tile i of x, r + 2 i; 4 and 5 are x, 6 and 7 weights.
template <int r, int n, int parts> QK_IN void multiply(const uint8_t* weights) {
  QK_UNROLL for (int p = 0; p < parts; p++) {
    tile_load<6 + r>(weights + p * kTileBytes);
    tile_dot<r, 4, 6 + r>();
    if constexpr (n == 2) tile_dot<r + 2, 5, 6 + r>();
  }
}
template <int n> QK_IN void clear_sums() {
  tile_clear<0>(), tile_clear<1>();
  if constexpr (n == 2) tile_clear<2>(), tile_clear<3>();
}
template <int n> QK_IN void store_sums(float (*to)[16][16]) {
  tile_store<0>(to[0]), tile_store<1>(to[1]);
  if constexpr (n == 2) tile_store<2>(to[2]), tile_store<3>(to[3]);
}

// The sums of the segment that ended last, on their way to the totals. They are added while the next ones are multiplied: what
// a tile has stored takes its time to get to where it can be loaded.
struct Ended {
  alignas(64) float sums[2 * kStripes][16][16];
  F scale[kStripes];
  float* totals;  // [tiles][kStripes][each][16]
  int next = 0, end = 0;  // tiles of sums that are to be added

  template <int parts> QK_HD void add_tile(int64_t each) {
    const float* sum = sums[next][0];
    float* total = totals + next * each * kLanes;
    const F by = scale[next % kStripes];
    for (int64_t j = 0; j < each; j++, sum += parts * kLanes, total += kLanes) {
      F all = load(sum + (parts - 1) * kLanes);
      QK_UNROLL for (int p = parts - 2; p >= 0; p--) all = all + load(sum + p * kLanes);
      store(total, fused(all, by, load(total)));
    }
    next++;
  }
  QK_HD void add(int parts, int64_t each) {
    if (next == end) return;
    if (parts == 1) add_tile<1>(each);
    else if (parts == 2) add_tile<2>(each);
    else add_tile<3>(each);
  }
  QK_HD void flush(int parts, int64_t each) { while (next < end) add(parts, each); }
};

// The rows of kStripes stripes from `stripe` on; those at `end` and beyond are the last one again, and not written.
template <int bits, class Levels, int parts> struct Stripes {
  using D = Decoder<bits, Levels, parts>;
  const Packed& w;
  const AmxRows& x;
  const D decoder;
  float* const totals;  // [tiles][kStripes][each][16]
  Ended ended;

  // Sub-blocks [chunk, stop) of tiles i to i + n - 1, and decodes units [first, last) of the next chunk.
  template <int n> QK_HD void multiply_chunk(int64_t i, int64_t chunk, int64_t stop, int first, int last) {
    const int x_parts = x.parts;
    const int64_t each = x.each, next_x = x.height() * 32;
    const uint16_t *xs = x.block(i, chunk), *more = n == 2 ? x.block(i + 1, chunk) : nullptr;
    const uint8_t* weights = decoder.half(chunk);
    uint8_t* const other = decoder.half(chunk + D::kBlocks);
    int unit = first, due = 0;
    for (int64_t block = chunk; block < stop;) {
      const int64_t group = block * kBlock / w.group;
      const int64_t group_end = group + 1 == w.G ? decoder.blocks : (group + 1) * w.group / kBlock;
      const int64_t segment = lower(lower((block / 4 + 1) * 4, stop), group_end);
      clear_sums<n>();
      for (; block < segment; block++, xs += next_x, weights += kStripes * D::kTile) {
        tile_load<4>(xs);
        if constexpr (n == 2) tile_load<5>(more), more += next_x;
        multiply<0, n, parts>(weights);
        multiply<1, n, parts>(weights + D::kTile);
        ended.add(x_parts, each);
        for (due += last - first; due >= D::kBlocks; due -= D::kBlocks) decoder.unit(chunk + D::kBlocks, unit++, other);
      }
      ended.flush(x_parts, each);
      store_sums<n>(ended.sums);
      for (int r = 0; r < kStripes; r++) ended.scale[r] = load(w.scale + (decoder.at[r] * w.G + group) * kStripe);
      ended.totals = totals + i * kStripes * each * kLanes, ended.next = 0, ended.end = kStripes * n;
    }
  }

  QK_HD void run() {
    const int64_t blocks = decoder.blocks, pairs = (x.tiles + 1) / 2;
    memset(totals, 0, x.tiles * kStripes * x.each * kLanes * sizeof(float));
    for (int u = 0; u < D::kUnits; u++) decoder.unit(0, u, decoder.half(0));
    for (int64_t chunk = 0; chunk < blocks; chunk += D::kBlocks) {
      const int64_t stop = lower(chunk + D::kBlocks, blocks);
      for (int64_t p = 0; p < pairs; p++) {
        const int first = int(p * D::kUnits / pairs), last = int((p + 1) * D::kUnits / pairs);
        if (2 * p + 1 < x.tiles) multiply_chunk<2>(2 * p, chunk, stop, first, last);
        else multiply_chunk<1>(2 * p, chunk, stop, first, last);
      }
    }
    ended.flush(x.parts, x.each);
  }
};

template <int bits, class Levels, int parts>
void all_stripes(const Packed& w, const AmxLevels& levels, int64_t begin, int64_t end, const AmxRows& x, const float* bias, Output y,
           uint8_t* scratch) {
  static_assert(2 * Decoder<bits, Levels, parts>::kBytes <= qk::LutAmx::kBuffer);
  TileShapes shapes;
  for (int n = 0; n < 8; n++) shapes.bytes[n] = 64, shapes.rows[n] = uint8_t(n < 6 ? x.height() : 16);
  const Tiles tiles(shapes);
  float* totals = reinterpret_cast<float*>(scratch + qk::LutAmx::kBuffer);
  for (int64_t stripe = begin; stripe < end; stripe += kStripes) {
    Stripes<bits, Levels, parts> stripes{w, x, {w, levels, stripe, end, scratch}, totals, {}};
    stripes.run();
    for (int64_t m = 0; m < x.M; m++)
      for (int r = 0; r < kStripes && stripe + r < end; r++)
        write(w, stripe + r, load(totals + ((m / x.each * kStripes + r) * x.each + m % x.each) * kLanes), bias, y, m);
  }
}

void linear(const Packed& w, const AmxLevels& levels, int64_t begin, int64_t end, const AmxRows& x, const float* bias, Output y,
            uint8_t* scratch) {
  for_kind(w, [&](auto kind) {
    using L = typename decltype(kind)::Levels;
    switch (levels.parts) {
      case 1: return all_stripes<kind.bits, L, 1>(w, levels, begin, end, x, bias, y, scratch);
      case 2: return all_stripes<kind.bits, L, 2>(w, levels, begin, end, x, bias, y, scratch);
      case 3: return all_stripes<kind.bits, L, 3>(w, levels, begin, end, x, bias, y, scratch);
    }
  });
}

}  // namespace
#define QK_AMX {split, linear}
#else
#define QK_AMX {nullptr, nullptr}
#endif

namespace qk {
extern const LutAmx QK_NAME(lut_amx);
const LutAmx QK_NAME(lut_amx) = QK_AMX;
}  // namespace qk
