// One activation row times a packed weight on the CPU: see lut_alone.h.
#include "lut_alone.h"

namespace {

// body(way): how a row meets the weight.
template <class Body> QK_IN void for_way(const Packed& w, Body&& body) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    if constexpr (kind.bits <= 2)
      if (Nibbles<kind.bits>::fit(w)) return body(Nibbles<kind.bits>{});
    body(Alone<kind.bits, typename decltype(kind)::Levels>{});
  });
}

// Floats and numbers that `spread` writes.
void room(const Packed& w, int64_t* floats, int64_t* numbers) {
  for_way(w, [&](auto way) QK_INLINE_LAMBDA { way.room(w, floats, numbers); });
}

void spread(const Packed& w, const float* x, float* to, int32_t* groups) {
  for_way(w, [&](auto way) QK_INLINE_LAMBDA { way.spread(w, x, to, groups); });
}

void linear(const Packed& w, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y) {
  for_way(w, [&](auto way) QK_INLINE_LAMBDA { way.linear(w, begin, end, x, groups, bias, y); });
}

}  // namespace

QK_KERNELS(LutAlone, lut_alone, {room, spread, linear})
