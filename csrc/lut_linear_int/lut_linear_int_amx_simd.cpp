// lut_linear_int.h on the matrix tiles of AMX-INT8 (see lut_tiles.h): two stripes at a time, or the even and the odd levels of one.
// Integers: the bits are those of the other kernels.
#include "../common/simd.h"
#include "lut_linear_int.h"

#if QK_ISA == 512
#ifndef QK_TILES_IN_SOFTWARE
QK_ALSO("gfni")  // which every processor with these tiles has
#define QK_GFNI 1
#endif
#include "lut_linear_int_bytes.h"
#include "../lut_linear/lut_tiles.h"

namespace {

template <int bits, int tables, bool x_signed> struct Products {
  static constexpr int kParts = tables == 2 ? 2 : 1, kStripes = 2 / kParts, kBits = bits, kBlockBytes = 512 * kParts;
  static constexpr int kBlocks = 8;
  struct Note { const int32_t* more; int64_t next; };  // of the first tile's rows, and how far to those of the next
  struct Decoded {
    const Bytes<bits, tables> bytes;
    QK_HD void block(const I (&words)[1][Codes<bits>::kWords], int first, int s, uint8_t* to) const {
      bytes.quads(bytes, words, first, s, [&](int i, int odd, I quad) QK_INLINE_LAMBDA { store_words(to + at(0, odd) + i * 64, quad); });
    }
  } const table;
  const Units units;
  const ByteRows& x;

  int depth() const { return x.depth; }
  int x_bytes() const { return int(x.stride()); }
  static constexpr int64_t at(int b, int part) { return (part * kBlocks + b) * 512; }  // of a stripe, or of the odd levels
  static int64_t segment_end(int64_t block, int64_t group) {
    constexpr int64_t kMost = ByteRows::kSegment / kBlock;
    return group + ((block - group) / kMost + 1) * kMost;
  }
  Note note(int64_t i, int64_t cut) const { return {x.more_of(i, cut), x.each}; }

  template <int n, int part> QK_HD static void multiply_part(const uint8_t* weights) {
    tile_load<6 + part>(weights);
    tile_dot_bytes<part, 4, 6 + part, x_signed, !x_signed>();
    if constexpr (n == 2) tile_dot_bytes<part + 2, 5, 6 + part, x_signed, !x_signed>();
  }
  template <int n> QK_HD static void multiply(const uint8_t* weights) {
    multiply_part<n, 0>(weights);
    multiply_part<n, 1>(weights + at(0, 1));
  }

  QK_HD void add(const uint32_t (*sums)[16][16], int which, F scale, Note note, float* total) const {
    const int32_t* more = note.more + which / kStripes * note.next;
    const uint32_t (*const sum)[16] = sums[which * kParts], (*const odd)[16] = sums[which * kParts + kParts - 1];
    const Units in = units;  // in registers: what is stored could lie anywhere
    for (int64_t j = 0, each = x.each; j < each; j++, total += kLanes) {
      const I second{_mm512_load_si512(odd[j])};
      store(total, in.add({_mm512_load_si512(sum[j])}, kParts == 2 ? &second : nullptr, more[j], scale, load(total)));
    }
  }
  QK_HD F finish(F total, int64_t m) const { return total * F(x.step[m]); }
};

template <class Form>
void stripes(const Packed& w, const ByteLevels& levels, int64_t begin, int64_t end, const ByteRows& x, const float* bias, float* y,
             uint8_t* scratch) {
  static_assert(Decoder<Form>::kBlocks == Form::kBlocks && 2 * Decoder<Form>::kBytes <= qk::LutIntAmx::kBuffer);
  const Form form{{decltype(Form::table.bytes)(levels)}, Units(levels), x};
  float* const totals = reinterpret_cast<float*>(scratch + qk::LutIntAmx::kBuffer);
  all_stripes(w, form, begin, end, bias, {y, 0}, scratch, totals, reinterpret_cast<uint32_t*>(totals + x.tiles * x.each * 2 * kLanes));
}

void linear(const Packed& w, const ByteLevels& levels, int64_t begin, int64_t end, const ByteRows& x, const float* bias, float* y,
            uint8_t* scratch) {
  for_bytes(w, levels, [&](auto of) {
    const auto kernel = levels.x_signed ? stripes<Products<of.kBits, of.kTables, true>> : stripes<Products<of.kBits, of.kTables, false>>;
    kernel(w, levels, begin, end, x, bias, y, scratch);
  });
}

}  // namespace
#ifndef QK_TILES_IN_SOFTWARE
QK_NO_MORE
#endif
QK_KERNELS(LutIntAmx, lut_linear_int_amx, {linear})
#else
QK_KERNELS(LutIntAmx, lut_linear_int_amx, {})
#endif
