// soft_assign, the maths: a value drawn to its levels q_k, for CPU and CUDA alike.
//   y = sum_k pi_k q_k        pi = softmax_k(-t (x - q_k)**2)
// All exponents are taken beside the nearest level m, where they are 0:
//   -t (x - q)**2 + t (x - m)**2 = t (q - m) ((x - q) + (x - m)) <= 0
// so that nothing overflows or cancels, however far x is. With w = y, c_k = q_k - w and a_k = g pi_k:
//   dx = 2t sum_k a_k c_k**2    dq_k = sum a_k (1 + 2t c_k (x - q_k))    dt = sum_k a_k c_k (q_k - m) ((x - q_k) + (x - m))
#pragma once
#include <cstdint>
#include "../common/functions.h"

namespace qk {

constexpr int kMaxLevels = 256;

// x where it may be infinite: far beyond any level, and small enough that no product of it with a level overflows.
template <class V>
QK_HD V bounded(V x) { return clamp(x, V(-1e30f), V(1e30f)); }

// The exponent of level q beside the nearest level m, base 2, in [-64, 0]; s is t log2(e).
template <class V>
QK_HD V exponent(V x, V q, V m, V s) { return at_least(s * ((q - m) * ((x - q) + (x - m))), V(-64.0f)); }

constexpr float kLog2e = 1.44269504088896341f;

// Half way between two levels belongs to the lower one.
QK_HD float midpoint(float lower, float upper) { return (lower + upper) * 0.5f; }

// What the gradients of one x need beside its levels.
template <class V>
struct SoftPoint {
  V m;      // the nearest level
  V shift;  // y - m: q - y is (q - m) - shift, which does not lose what is small beside q
  V a;      // g / sum_k e_k, so that a e_k = g pi_k
};

// The terms of level q, its weight e and its exponent v: returns that of dq; adds those of dx, and of dt times t log2(e).
template <class V>
QK_HD V soft_terms(V x, V q, V e, V v, V t2, const SoftPoint<V>& o, V& dx, V& dt) {
  const V a = e * o.a, c = (q - o.m) - o.shift, ac = a * c, b = ac * t2;
  dx = fused(b, c, dx);
  dt = fused(ac, v, dt);
  return fused(b, x - q, a);
}

}  // namespace qk
