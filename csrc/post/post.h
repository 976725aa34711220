// POST, the maths: the nearest power of sqrt(2), for CPU and CUDA alike.
//   u = w / s    l = sign(u) * nearest(min(|u|, 1))    y = l * s
//   dw = g where |u| <= 1 (clip off: everywhere)       ds = g * (l - u where |u| <= 1, else sign(u))
// Nearest without a table: with 2**e <= |u| < 2**(e+1), the level is 2**e times 1, 1.4140625 (bfloat16(sqrt(2))) or 2; the
// midpoints 1.20703125 and 1.70703125 are exact in float32, so this equals the argmin over the levels.
#pragma once
#include "../common/functions.h"

namespace qk {

struct PostArgs {
  float least;  // the smallest magnitude
  bool zero;    // whether 0 is a level
  bool clip;    // whether a clipped weight gets no gradient
};

// count magnitudes: the smallest is 2**(-(count - 1) / 2).
inline PostArgs post_args(int64_t count, bool zero, bool clip) {
  float least = (count - 1) % 2 ? 1.4140625f : 1.0f;
  for (int64_t k = 0; k < count / 2; k++) least /= 2;
  return {least, zero, clip};
}

template <class V>
struct Post {
  using Args = PostArgs;
  static constexpr int kParams = 1;  // scale
  V s, least, zero_below, outside;  // outside: 1 where a clipped weight gets its gradient
  Divisor<V> by;
  QK_HD Post(const Args& a, const float* const* params, int64_t p)
      : s(positive_or_nan(params[0][p])), least(a.least),
        zero_below(a.zero ? a.least / 2 : 0.0f), outside(a.clip ? 0.0f : 1.0f), by(s) {}

  QK_HD V level(V u) const {
    const V a = at_most(absolute(u), V(1.0f)), m = mantissa(a);
    const V l = at_least(pow2_floor(a) * select(m >= V(1.70703125f), V(2.0f), select(m >= V(1.20703125f), V(1.4140625f), V(1.0f))), least);
    const V magnitude = select(a >= zero_below, l, V(0.0f));
    return select(is_number(u), select(u < V(0.0f), V(0.0f) - magnitude, magnitude), u);  // 0 - 0 is +0
  }

  QK_HD V value(V w) const { return level(by.quotient(w)) * s + V(0.0f); }  // + 0: an underflow may be to -0

  QK_HD V grad(V g, V w, V* terms) const {
    const V u = by.quotient(w), l = level(u);
    const auto inside = (u >= V(-1.0f)) & (u <= V(1.0f));  // false for NaN
    terms[0] = g * select(inside, l - u, l);               // outside, l is the sign
    return select(inside | (is_number(u) & (outside > V(0.0f))), g, V(0.0f));
  }
};

}  // namespace qk
