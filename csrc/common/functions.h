// Functions built from the vocabulary of maths.h, for V = float or sixteen floats (simd.h), with the same bits for both. A
// file of vectors includes simd.h first: what follows is then compiled for its instruction set.
#pragma once
#include "maths.h"

namespace qk {

// x / s of one s and many x, with the bits of a division where 2**-40 <= |x / s| < 2**22 (elsewhere it may be a unit off in
// the last place). A GPU's own division checks its operands and
// calls a function for extreme ones, which costs registers; this is 8 operations: from a product with 1 / s two steps,
// each with an exact remainder; the second rounds correctly, as a step from a neighbor with a rounded 1 / s does (Markstein).
template <class V>
struct Divisor {
  V s, unit, inverse;  // as below, of s unit
  QK_HD explicit Divisor(V s) : s(s), unit(V(1.0f) / at_least(pow2_floor(s), V(1.17549435e-38f))), inverse(V(1.0f) / (s * unit)) {}
  QK_HD V quotient(V x) const { return x / s; }
  QK_HD V rough(V x) const { return (x * unit) * inverse; }
};
template <>
struct Divisor<float> {
  float unit, s, inverse;  // s in [1, 2) (a denormal one: less), so that no step leaves the range of float32
  QK_HD explicit Divisor(float of) : unit(1.0f / at_least(pow2_floor(of), 1.17549435e-38f)), s(of * unit), inverse(1.0f / s) {}
  QK_HD float quotient(float x) const {
    const float v = x * unit, rough = v * inverse, near = step(v, rough);
    return absolute(rough) < 4194304.0f ? step(v, near) : rough;  // Inf and NaN stay
  }
  QK_HD float rough(float x) const { return (x * unit) * inverse; }  // to two units in the last place, also of a denormal s
  QK_HD float step(float v, float q) const { return __builtin_fmaf(__builtin_fmaf(-q, s, v), inverse, q); }
};

// n / d, correctly rounded, for n and d with exponents well within the range of float32: what a GPU does for such numbers, but
// without the check whether they are, and without the call for those that are not.
template <class V>
QK_HD V ratio(V n, V d) { return n / d; }
#ifdef __CUDA_ARCH__
QK_HD float ratio(float n, float d) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(d));
  r = __builtin_fmaf(__builtin_fmaf(-d, r, 1.0f), r, r);
  const float q = n * r;
  return __builtin_fmaf(__builtin_fmaf(-d, q, n), r, q);
}
#endif

// first r**n + ... + the last, by Horner's rule.
template <class V, class... Coefficients>
QK_HD V polynomial(V r, float first, Coefficients... rest) {
  V p(first);
  ((p = fused(p, r, V(rest))), ...);
  return p;
}

// e**r - 1 and n, where v = n ln 2 + r with |r| <= ln(2) / 2; a polynomial in r (the coefficients of Cephes' expf).
template <class V>
QK_HD V reduced_exponential(V v, V* n) {
  *n = round_even(v * V(1.44269504088896341f));
  const V r = fused_less(*n, V(-2.12194440e-4f), fused_less(*n, V(0.693359375f), v));
  const V p = polynomial(r, 1.9875691500e-4f, 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                         5.0000001201e-1f);
  return fused(p, r * r, r);
}

// e**v to a unit in the last place, for -87.3 <= v <= 88; a NaN stays.
template <class V>
QK_HD V normal_exponential(V v) {
  V n;
  const V y = reduced_exponential(v, &n);
  return times_pow2(y + V(1.0f), n);
}
// The same of any v: above 88 e**88, below -87.3 0, where it would be denormal.
template <class V>
QK_HD V within_normal(V v) { return at_most(at_least(v, V(-87.3f)), V(88.0f)); }
template <class V>
QK_HD V exponential(V v) { return select(v < V(-87.3f), V(0.0f), normal_exponential(within_normal(v))); }

// e**v = 2**n up and e**-v = 2**-n down, for |v| <= 1e4: one reduction and one polynomial for both (cosh + sinh and cosh - sinh).
template <class V>
struct Exponentials { V n, up, down; };
template <class V>
QK_HD Exponentials<V> exponentials(V v) {
  const V n = round_even(v * V(1.44269504088896341f));
  const V r = fused_less(n, V(-2.12194440e-4f), fused_less(n, V(0.693359375f), v)), square = r * r;
  const V even = polynomial(square, 1.0f / 720.0f, 1.0f / 24.0f, 0.5f, 1.0f);
  const V odd = fused(r * square, polynomial(square, 1.0f / 5040.0f, 1.0f / 120.0f, 1.0f / 6.0f), r);
  return {n, even + odd, even - odd};
}

// y 2**n for y in [1/4, 4] and a whole n <= 125; 0 for n < -124, where it could be denormal, which is slow (also to compute and
// not select).
template <class V>
QK_HD V scaled(V y, V n) { return select(n < V(-124.0f), V(0.0f), times_pow2(y, at_least(n, V(-124.0f)))); }

// e**v - 1 to two units in the last place, also near 0; the range of exponential.
template <class V>
QK_HD V exponential_minus_one(V v) {
  V n;
  const V y = reduced_exponential(within_normal(v), &n);
  return times_pow2(y, n) + (times_pow2(V(1.0f), n) - V(1.0f));
}

// ln v to a few units in the last place, for a normal v > 0: of 2**n m, with m near 1 and artanh's series in (m - 1) / (m + 1).
QK_HD float logarithm(float v) {
  const uint32_t root = 0x3f3504f3u;  // sqrt(1/2)
  const int32_t bits = int32_t(bits_of(v) - root);
  const float n = float(bits >> 23), m = from_bits((uint32_t(bits) & 0x7fffffu) + root), r = (m - 1.0f) / (m + 1.0f);
  const float series = polynomial(r * r, 2.0f / 9.0f, 2.0f / 7.0f, 2.0f / 5.0f, 2.0f / 3.0f);
  return fused(n, 0.693359375f, fused(n, -2.12194440e-4f, fused(series * r, r * r, r + r)));
}

// 2**v - 2**-64 for v in [-64, 0], to a unit in the last place of 2**v: a weight beside others of which one is 1. It is
// exactly 1 at 0 and exactly 0 at -64; what is smaller changes no sum, but its products would be denormal, which is slow.
// A NaN stays. 2**v = 2**n 2**r with |r| <= 1 / 2, and a polynomial in r (its own minimax fit, 2e-9 off).
template <class V>
QK_HD V relative_weight(V v) {
  const V n = round_even(v), r = v - n;  // exact
  const V p = polynomial(r, 1.5353362e-4f, 1.3398875e-3f, 9.6184369e-3f, 5.5503324e-2f, 2.4022648e-1f, 6.9314718e-1f);
  return times_pow2(fused(p, r, V(1.0f)), n) - V(5.421010862427522e-20f);
}

}  // namespace qk
