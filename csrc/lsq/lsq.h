// LSQ, the maths: one definition of rounding and of the gradients, for CPU and CUDA alike.
//   v = x / s    q = round(clamp(v, lo, hi))    y = q * s
//   dx = g inside [lo, hi], else 0              ds = g * (q - v inside, else q)
#pragma once
#include "../common/functions.h"

namespace qk {

struct LsqArgs { float lo, hi; };  // smallest and largest code

template <class V>
struct Lsq {
  using Args = LsqArgs;
  static constexpr int kParams = 1;  // step
  V s, lo, hi;
  Divisor<V> by;
  QK_HD Lsq(const Args& a, const float* const* params, int64_t p)
      : s(positive_or_nan(params[0][p])), lo(a.lo), hi(a.hi), by(s) {}

  QK_HD V integer(V x) const { return round_even(clamp(by.quotient(x), lo, hi)); }
  QK_HD V value(V x) const { return integer(x) * s; }

  QK_HD V grad(V g, V x, V* terms) const {
    const V v = by.quotient(x), c = clamp(v, lo, hi), q = round_even(c);
    const auto inside = (v >= lo) & (v <= hi);  // false for NaN: its dx is 0, its term NaN
    terms[0] = g * select(inside, q - v, c);
    return select(inside, g, V(0.0f));
  }
};

}  // namespace qk
