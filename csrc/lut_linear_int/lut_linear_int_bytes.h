// Codes as the bytes of lut_linear_int.h, which meet the bytes of x.
#pragma once
#include "../lut_linear/lut_quads.h"
#include "lut_linear_int.h"

namespace {

using qk::ByteLevels;
using qk::ByteRows;

template <int bits, int tables> struct Bytes {
  const ByteTable<bits> even, odd;
  const I flip;  // of 8 bits without a table
  explicit Bytes(const ByteLevels& l) : even(l.even), odd(l.odd), flip(all(l.x_signed ? 0 : int32_t(0x80808080))) {}
  // body(i, even or odd, quad i of eight) for sub-block `first + s` of what Codes loads.
  template <class Body> QK_IN void quads(const Bytes& self, const I (&words)[1][Codes<bits>::kWords], int first, int s, Body&& body) {
    QK_UNROLL for (int t = 0; t < 4; t++)
      Quads<bits>::octet(words, first, s, t, [&](int q, I code) QK_INLINE_LAMBDA {
        if constexpr (tables) body(2 * t + q, 0, self.even(code));
        else if constexpr (bits == 8) body(2 * t + q, 0, code ^ self.flip);
        else body(2 * t + q, 0, code);
        if constexpr (tables == 2) body(2 * t + q, 1, self.odd(code));
      });
  }
};

// body of the kind of a weight. Two levels are always evenly spaced; one table is worth its code for 4 bits alone.
template <int bits, int tables> struct Of { static constexpr int kBits = bits, kTables = tables; };
template <class Body> void for_bytes(const Packed& w, const ByteLevels& l, Body&& body) {
  const auto either = [&](auto codes, auto both) { l.tables ? body(both) : body(codes); };
  switch (w.bits) {
    case 1: return body(Of<1, 0>{});
    case 2: return either(Of<2, 0>{}, Of<2, 2>{});
    case 3: return either(Of<3, 0>{}, Of<3, 2>{});
    case 4: return l.tables == 1 ? body(Of<4, 1>{}) : either(Of<4, 0>{}, Of<4, 2>{});
    case 8: return either(Of<8, 0>{}, Of<8, 2>{});
  }
}

// What the sums of a segment, of even and of odd levels (nullptr: without), become.
struct Units {
  I a, b;
  bool is_one;  // a
  explicit Units(const ByteLevels& l) : a(all(l.a)), b(all(l.b)), is_one(l.a == 1) {}
  // Times the scale, added to the total: each rounded.
  QK_HD F add(I even, const I* odd, int32_t more, F scale, F total) const {
    if (!is_one) even = even * a;
    if (odd) even = even + *odd * b;
    return total + to_float(even + all(more)) * scale;
  }
};

}  // namespace
