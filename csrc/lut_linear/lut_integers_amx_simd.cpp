// Rows of x times a packed weight in integers, by AMX-INT8: a row of x is four (of 16 bits three), one for each digit, and sixteen
// rows of the weight times 64 columns (or 32) are a tile of bytes: codes as they are, or their levels by table. The bits of a row
// are those of the kernel for one row (lut_integers_simd.cpp), in any batch.
#include "../common/simd.h"
#include "lut_integers.h"

#if QK_ISA == 512
#ifndef QK_TILES_IN_SOFTWARE
QK_ALSO("gfni")  // which every processor with these tiles has
#define QK_GFNI 1
#endif
#include "lut_quads.h"
#include "lut_tiles.h"

namespace {

using qk::IntegerLevels;
using qk::IntegerRows;

// What codes become: themselves, or their levels by table.
template <int bits, bool by_table> struct Bytes {
  const ByteTable<4> levels;
  explicit Bytes(const IntegerLevels& l) : levels(l.table) {}
  // Sub-block `first + s` of a unit: to [8 quads][16 rows].
  QK_HD void block(const I (&words)[1][Codes<bits>::kWords], int first, int s, uint8_t* to) const {
    for (int t = 0; t < 4; t++)
      Quads<bits>::octet(words, first, s, t, [&](int q, I code) QK_INLINE_LAMBDA {
        store_words(to + (2 * t + q) * 64, by_table ? levels(code) : code);
      });
  }
};

template <int bits, bool by_table> struct Integers : Usual {
  static constexpr int kBits = bits, kBlockBytes = 512, kBlocks = Codes<bits>::kBlocks > 4 ? Codes<bits>::kBlocks : 4;
  struct Note { const IntegerRows::Segment* first; int64_t next; };  // of the first tile's rows, and how far to those of the next
  const Bytes<bits, by_table> table;
  const IntegerRows& x;
  const int32_t factor;

  int depth() const { return int(x.depth); }
  int x_bytes() const { return int(x.stride()); }
  static constexpr int64_t at(int b, int r) { return (r * kBlocks + b) * kBlockBytes; }
  Note note(int64_t i, int64_t cut) const { return {x.segment(i, cut), x.cuts * x.each}; }

  template <int n, int r> QK_HD static void multiply_stripe(const uint8_t* weights) {
    tile_load<6 + r>(weights);
    tile_dot_bytes<r, 4, 6 + r, true, by_table>();
    if constexpr (n == 2) tile_dot_bytes<r + 2, 5, 6 + r, true, by_table>();
  }
  template <int n> QK_HD static void multiply(const uint8_t* weights) {
    multiply_stripe<n, 0>(weights);
    multiply_stripe<n, 1>(weights + at(0, 1));
  }

  template <int digits> QK_HD void add_rows(const uint32_t (*sum)[16], F scale, const IntegerRows::Segment* segment, float* total) const {
    const int64_t each = x.each;  // what is stored could lie anywhere
    const int32_t by = factor;
    for (int64_t j = 0; j < each; j++, sum += digits, segment++, total += kLanes) {
      I digit[digits];
      for (int d = 0; d < digits; d++) digit[d] = {_mm512_load_si512(sum[d])};
      store(total, fused(in_steps(digit, by, *segment), scale, load(total)));
    }
  }
  QK_HD void add(const uint32_t (*sums)[16][16], int which, F scale, Note note, float* total) const {
    const IntegerRows::Segment* segment = note.first + which / kStripes * note.next;
    if (x.digits == 3) add_rows<3>(sums[which], scale, segment, total);
    else add_rows<4>(sums[which], scale, segment, total);
  }
};

template <int bits, bool by_table>
void stripes(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y,
             uint8_t* scratch) {
  using Form = Integers<bits, by_table>;
  static_assert(Decoder<Form>::kBlocks == Form::kBlocks && 2 * Decoder<Form>::kBytes <= qk::LutIntegersAmx::kBuffer);
  const Form form{{}, Bytes<bits, by_table>(levels), x, levels.factor};
  all_stripes(w, form, begin, end, bias, y, scratch, reinterpret_cast<float*>(scratch + qk::LutIntegersAmx::kBuffer));
}

void linear(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y,
            uint8_t* scratch) {
  const auto of = [&](auto codes, auto by_table) { (levels.affine ? codes : by_table)(w, levels, begin, end, x, bias, y, scratch); };
  switch (w.bits) {
    case 1: return of(stripes<1, false>, stripes<1, true>);
    case 2: return of(stripes<2, false>, stripes<2, true>);
    case 3: return of(stripes<3, false>, stripes<3, true>);
    case 4: return of(stripes<4, false>, stripes<4, true>);
    case 8: return stripes<8, false>(w, levels, begin, end, x, bias, y, scratch);
  }
}

}  // namespace
#ifndef QK_TILES_IN_SOFTWARE
QK_NO_MORE
#endif
QK_KERNELS(LutIntegersAmx, lut_integers_amx, {linear})
#else
QK_KERNELS(LutIntegersAmx, lut_integers_amx, {})
#endif
