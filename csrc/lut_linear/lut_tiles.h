// Rows of x times a packed weight on matrix tiles, two stripes at a time, or one for which there are two sums: they are decoded into
// memory, the only way into a tile, chunk after chunk, while the chunk before is multiplied.
//
// A Form is how: into what codes are decoded (kBits, kBlockBytes of a sub-block, at, in equal steps of sub-blocks and of stripes,
// table.block), how `depth` sub-blocks are multiplied by a tile of x with rows of x_bytes (multiply), how the sums of a segment are added
// to the totals (Note, note, add), and what it does not leave to Usual; and x. Tiles 0 to 3 are sums, 4 and 5 x, 6 and 7 weights.
#pragma once
#include "../common/amx.h"
#include "lut_words.h"

namespace {

struct Usual {
  static constexpr int kStripes = 2;
  // The sub-block where the segment ends that holds `block`, if not with the group, which starts with sub-block `group`.
  static int64_t segment_end(int64_t block, int64_t group) {
    static_assert(kSegment == 4 * kBlock);
    return (block / 4 + 1) * 4;
  }
  static F finish(F total, int64_t m) { return total; }  // of row m of x, before the bias
};

// kStripes stripes in chunks: kBlocks sub-blocks of each are decoded into one half of a buffer while those of the other half
// are multiplied. A unit is what Codes loads at a time; where a chunk is shorter a slice of that, which is loaded for each slice.
template <class Form> struct Decoder {
  using C = Codes<Form::kBits>;
  static constexpr int kStripes = Form::kStripes, kBlocks = Form::kBlocks, kSlice = kBlocks < C::kBlocks ? kBlocks : C::kBlocks;
  static constexpr int kUnits = kStripes * (kBlocks / kSlice);
  static constexpr int kBytes = kBlocks * kStripes * Form::kBlockBytes;
  const C codes;
  const Form& form;
  const int64_t blocks;
  int64_t stripe[kStripes];
  uint8_t* const buffer;  // two halves
  Decoder(const Packed& w, const Form& f, int64_t first, int64_t last, uint8_t* to)
      : codes(w), form(f), blocks((w.K + kBlock - 1) / kBlock), buffer(to) {
    for (int r = 0; r < kStripes; r++) stripe[r] = lower(first + r, last - 1);
  }

  uint8_t* half(int64_t chunk) const { return buffer + (chunk / kBlocks % 2 ? kBytes : 0); }
  // Unit `unit` of the chunk that starts with sub-block `chunk`, which goes to `to`.
  QK_HD void unit(int64_t chunk, int unit, uint8_t* to) const {
    const int r = unit % kStripes, first = unit / kStripes * kSlice;
    if (chunk + first >= blocks) return;
    const int skip = kSlice == C::kBlocks ? 0 : int((chunk + first) % C::kBlocks);  // what of a unit is before the slice
    const int64_t start = Form::at(first - skip, r);
    I words[1][C::kWords];
    codes.load(stripe[r], chunk + first - skip, words[0]);
    for (int b = 0; b < kSlice; b++)
      for (int t = 0; t < 4; t++) codes.template prefetch<kStripes>(stripe[r], chunk + first + b, t);
    const auto table = form.table;  // in registers: what is stored could lie anywhere
    for (int f = 0; f < C::kBlocks; f += C::kSteps)  // the last ones may lie beyond the row, and are not used then
      QK_UNROLL for (int s = 0; s < C::kSteps; s++)
        if (kSlice == C::kBlocks || (f + s >= skip && f + s < skip + kSlice)) table.block(words, f, s, to + (start + (f + s) * Form::at(1, 0)));
  }
};

// The sums of the segment that ended last, on their way to the totals. They are added while the next ones are multiplied: what
// a tile has stored takes its time to get to where it can be loaded.
template <class Form> struct Ended {
  static constexpr int kStripes = Form::kStripes;
  alignas(64) uint32_t sums[4][16][16];  // bits of whatever the form's are
  F scale[kStripes];
  float* totals;  // [tiles][kStripes][each][16]
  typename Form::Note note;
  int next = 0, end = 0;  // stripe r of tile i of x is r + kStripes * i

  QK_HD void add(const Form& form) {
    if (next == end) return;
    form.add(sums, next, scale[next % kStripes], note, totals + next * form.x.each * kLanes);
    next++;
  }
  QK_HD void flush(const Form& form) { while (next < end) add(form); }
};

// The rows of kStripes stripes from `stripe` on; those at `end` and beyond are the last one again, and not written.
template <class Form> struct Stripes {
  using D = Decoder<Form>;
  static constexpr int kStripes = Form::kStripes;
  const Packed& w;
  const Form& form;
  const D decoder;
  float* const totals;   // [tiles][kStripes][each][16]
  uint32_t* const open;  // [tiles / 2][4][16][16]: sums of segments that go on in the next chunk; of one pair of tiles none are stored
  Ended<Form> ended;

  template <int n> static QK_HD void clear() {
    tile_clear<0>(), tile_clear<1>();
    if constexpr (n == 2) tile_clear<2>(), tile_clear<3>();
  }
  template <int n> static QK_HD void load_sums(const uint32_t* from) {
    tile_load<0>(from), tile_load<1>(from + 256);
    if constexpr (n == 2) tile_load<2>(from + 512), tile_load<3>(from + 768);
  }
  template <int n> static QK_HD void store_sums(uint32_t* to) {
    tile_store<0>(to), tile_store<1>(to + 256);
    if constexpr (n == 2) tile_store<2>(to + 512), tile_store<3>(to + 768);
  }

  // Where a segment starts.
  struct Cut { int64_t number, group, group_end; bool open; };  // segments and groups before, the sub-block where this group ends
  int64_t group_end(int64_t group) const { return group + 1 == w.G ? decoder.blocks : (group + 1) * w.group / kBlock; }

  // Sub-blocks [chunk, stop) of tiles i to i + n - 1, from `cut` on; and decodes `units` units of the next chunk, from `unit` on.
  // Returns the cut that is reached.
  template <int n> QK_HD Cut multiply_chunk(int64_t i, int64_t chunk, int64_t stop, int unit, int units, Cut cut) {
    const int depth = form.depth(), x_bytes = form.x_bytes();
    const int64_t next_x = form.x.height() * x_bytes;
    const uint8_t *x = form.x.bytes_of(i, chunk), *more = n == 2 ? form.x.bytes_of(i + 1, chunk) : nullptr;
    const uint8_t* weights = decoder.half(chunk);
    uint8_t* const other = decoder.half(chunk + D::kBlocks);
    uint32_t* const sums = open && form.x.tiles > 2 ? open + i * 512 : nullptr;
    int due = 0;
    for (int64_t block = chunk; block < stop;) {
      const int64_t end = lower(form.segment_end(block, cut.group * w.group / kBlock), cut.group_end), segment = lower(end, stop);
      if (!cut.open) clear<n>();
      else if (sums) load_sums<n>(sums);
      for (; block < segment; block += depth, x += next_x, weights += depth * Form::at(1, 0)) {
        tile_load<4>(x, x_bytes);
        if constexpr (n == 2) tile_load<5>(more, x_bytes), more += next_x;
        Form::template multiply<n>(weights);
        ended.add(form);
        for (due += units * depth; due >= D::kBlocks; due -= D::kBlocks) decoder.unit(chunk + D::kBlocks, unit++, other);
      }
      block = segment;
      cut.open = segment < end;
      if (cut.open) {
        if (sums) store_sums<n>(sums);
        break;
      }
      ended.flush(form);
      store_sums<n>(ended.sums[0][0]);
      for (int r = 0; r < kStripes; r++) ended.scale[r] = scale_of(w, decoder.stripe[r], cut.group);
      ended.totals = totals + i * kStripes * form.x.each * kLanes;
      ended.note = form.note(i, cut.number), ended.next = 0, ended.end = kStripes * n;
      cut.number++;
      if (segment == cut.group_end) cut.group++, cut.group_end = group_end(cut.group);
    }
    return cut;
  }

  QK_HD void run() {
    const int64_t blocks = decoder.blocks, tiles = form.x.tiles, turns = (tiles + 1) / 2;
    memset(totals, 0, tiles * kStripes * form.x.each * kLanes * sizeof(float));
    for (int u = 0; u < D::kUnits; u++) decoder.unit(0, u, decoder.half(0));
    Cut cut{0, 0, group_end(0), false};
    for (int64_t chunk = 0; chunk < blocks; chunk += D::kBlocks) {
      const int64_t stop = lower(chunk + D::kBlocks, blocks);
      const Cut start = cut;
      for (int64_t p = 0, from = 0; p < turns; p++) {
        const int64_t to = turns == 1 ? D::kUnits : (p + 1) * D::kUnits / turns;
        if (2 * p + 1 < tiles) cut = multiply_chunk<2>(2 * p, chunk, stop, int(from), int(to - from), start);
        else cut = multiply_chunk<1>(2 * p, chunk, stop, int(from), int(to - from), start);
        from = to;
      }
    }
    ended.flush(form);
  }
};

// Columns of stripes [begin, end) of y. buffer: two halves of a chunk; totals and open: see Stripes.
template <class Form>
void all_stripes(const Packed& w, const Form& form, int64_t begin, int64_t end, const float* bias, Output y, uint8_t* buffer, float* totals,
                 uint32_t* open = nullptr) {
  constexpr int kStripes = Form::kStripes;
  TileShapes shapes;
  for (int n = 0; n < 8; n++) {
    shapes.bytes[n] = uint16_t(n == 4 || n == 5 ? form.x_bytes() : 64);
    shapes.rows[n] = uint8_t(n < 6 ? form.x.height() : form.x_bytes() / 4);
  }
  const Tiles in_force(shapes);
  const int64_t each = form.x.each;
  for (int64_t stripe = begin; stripe < end; stripe += kStripes) {
    Stripes<Form> stripes{w, form, {w, form, stripe, end, buffer}, totals, open, {}};
    stripes.run();
    for (int64_t m = 0; m < form.x.M; m++)
      for (int r = 0; r < kStripes && stripe + r < end; r++)
        write(w, stripe + r, form.finish(load(totals + ((m / each * kStripes + r) * each + m % each) * kLanes), m), bias, y, m);
  }
}

}  // namespace
