// What a backward kernel works on at once: two vectors (Wide) or four on AVX-512, so that the long chains of operations of one
// run in the shadow of the others'; one elsewhere, where a vector of sixteen is several registers already.
#pragma once
#include "simd.h"

namespace {

QK_IN F add(F sum, F terms) { return sum + terms; }

#if QK_ISA == 512
template <class H>
struct Two {
  H a, b;
  Two() = default;
  QK_HD Two(H a, H b) : a(a), b(b) {}
  QK_HD Two(float v) : a(v), b(v) {}
};
template <class H> struct TwoMasks { H a, b; };
#define QK_TWO template <class H> QK_IN
QK_TWO Two<H> operator+(Two<H> x, Two<H> y) { return {x.a + y.a, x.b + y.b}; }
QK_TWO Two<H> operator-(Two<H> x, Two<H> y) { return {x.a - y.a, x.b - y.b}; }
QK_TWO Two<H> operator*(Two<H> x, Two<H> y) { return {x.a * y.a, x.b * y.b}; }
QK_TWO Two<H> operator/(Two<H> x, Two<H> y) { return {x.a / y.a, x.b / y.b}; }
QK_TWO Two<H> fused(Two<H> x, Two<H> y, Two<H> z) { return {fused(x.a, y.a, z.a), fused(x.b, y.b, z.b)}; }
QK_TWO Two<H> fused_less(Two<H> x, Two<H> y, Two<H> z) { return {fused_less(x.a, y.a, z.a), fused_less(x.b, y.b, z.b)}; }
template <class H> TwoMasks(H, H) -> TwoMasks<H>;
QK_TWO auto operator<(Two<H> x, Two<H> y) { return TwoMasks{x.a < y.a, x.b < y.b}; }
QK_TWO auto operator<=(Two<H> x, Two<H> y) { return TwoMasks{x.a <= y.a, x.b <= y.b}; }
QK_TWO auto operator>(Two<H> x, Two<H> y) { return TwoMasks{x.a > y.a, x.b > y.b}; }
QK_TWO auto operator>=(Two<H> x, Two<H> y) { return TwoMasks{x.a >= y.a, x.b >= y.b}; }
QK_TWO TwoMasks<H> operator&(TwoMasks<H> x, TwoMasks<H> y) { return {x.a & y.a, x.b & y.b}; }
QK_TWO TwoMasks<H> operator|(TwoMasks<H> x, TwoMasks<H> y) { return {x.a | y.a, x.b | y.b}; }
QK_TWO bool any(TwoMasks<H> m) { return any(m.a | m.b); }
QK_TWO auto is_number(Two<H> x) { return TwoMasks{is_number(x.a), is_number(x.b)}; }
template <class N, class H>
QK_IN Two<H> select(TwoMasks<N> m, Two<H> x, Two<H> y) { return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)}; }
QK_TWO Two<H> at_most(Two<H> v, Two<H> hi) { return {at_most(v.a, hi.a), at_most(v.b, hi.b)}; }
QK_TWO Two<H> at_least(Two<H> v, Two<H> lo) { return {at_least(v.a, lo.a), at_least(v.b, lo.b)}; }
QK_TWO Two<H> clamp(Two<H> v, Two<H> lo, Two<H> hi) { return at_most(at_least(v, lo), hi); }
QK_TWO Two<H> absolute(Two<H> v) { return {absolute(v.a), absolute(v.b)}; }
QK_TWO Two<H> round_even(Two<H> v) { return {round_even(v.a), round_even(v.b)}; }
QK_TWO Two<H> pow2_floor(Two<H> v) { return {pow2_floor(v.a), pow2_floor(v.b)}; }
QK_TWO Two<H> mantissa(Two<H> v) { return {mantissa(v.a), mantissa(v.b)}; }
QK_TWO Two<H> larger(Two<H> x, Two<H> y) { return {larger(x.a, y.a), larger(x.b, y.b)}; }
QK_TWO Two<H> times_pow2(Two<H> y, Two<H> n) { return {times_pow2(y.a, n.a), times_pow2(y.b, n.b)}; }
QK_TWO Two<H> scaled(Two<H> y, Two<H> n) { return {scaled(y.a, n.a), scaled(y.b, n.b)}; }
QK_TWO Two<H> lookup(const float* table, Two<H> index) { return {lookup(table, index.a), lookup(table, index.b)}; }
#undef QK_TWO

template <int vectors> struct AtOnce { using V = Two<F>; };
template <> struct AtOnce<4> { using V = Two<Two<F>>; };
#else
template <int vectors> struct AtOnce { using V = F; };
#endif
using Wide = AtOnce<2>::V;

template <class V> constexpr int kLanesOf = kLanes * int(sizeof(V) / sizeof(F));

// As load, load_part, ... of a vector, for any number of them.
template <class V, class T>
QK_IN V load_as(const T* p) {
  if constexpr (kLanesOf<V> == kLanes) return load(p);
  else { using H = decltype(V::a); return {load_as<H>(p), load_as<H>(p + kLanesOf<H>)}; }
}
template <class V, class T>
QK_IN V load_part_as(const T* p, int64_t n) {
  if constexpr (kLanesOf<V> == kLanes) return n <= 0 ? F(0.0f) : n < kLanes ? load_part(p, n) : load(p);
  else { using H = decltype(V::a); return {load_part_as<H>(p, n), load_part_as<H>(p + kLanesOf<H>, n - kLanesOf<H>)}; }
}
#if QK_ISA == 512
template <class T, class H> QK_IN void store(T* p, Two<H> v) { store(p, v.a), store(p + kLanesOf<H>, v.b); }
template <class T, class H> QK_IN void store_part(T* p, Two<H> v, int64_t n) {
  if (n < kLanesOf<H>) return store_part(p, v.a, n);
  store(p, v.a);
  if (n > kLanesOf<H>) store_part(p + kLanesOf<H>, v.b, n - kLanesOf<H>);
}
template <class V>
QK_IN V leading_of(V v, int64_t n) {
  if (n >= kLanesOf<V>) return v;  // and not through memory
  if (n <= 0) return V(0.0f);
  return leading(v, n);
}
template <class H> QK_IN Two<H> leading(Two<H> v, int64_t n) { return {leading_of(v.a, n), leading_of(v.b, n - kLanesOf<H>)}; }
// sum, with terms added in the order of their elements: the same bits as one vector at a time.
template <class H> QK_IN F add(F sum, Two<H> terms) { return add(add(sum, terms.a), terms.b); }
#endif

}  // namespace
