// What a backward kernel works on at once (Wide): two vectors on AVX-512, so that the long chains of operations of one run
// in the shadow of the other's; one elsewhere, where a vector of sixteen is several registers already.
#pragma once
#include "simd.h"

namespace {

#if QK_ISA == 512
struct Wide {
  F a, b;
  Wide() = default;
  QK_HD Wide(F a, F b) : a(a), b(b) {}
  QK_HD Wide(float v) : a(v), b(v) {}
};
struct WideMask { M a, b; };
QK_IN Wide operator+(Wide x, Wide y) { return {x.a + y.a, x.b + y.b}; }
QK_IN Wide operator-(Wide x, Wide y) { return {x.a - y.a, x.b - y.b}; }
QK_IN Wide operator*(Wide x, Wide y) { return {x.a * y.a, x.b * y.b}; }
QK_IN Wide operator/(Wide x, Wide y) { return {x.a / y.a, x.b / y.b}; }
QK_IN Wide fused(Wide x, Wide y, Wide z) { return {fused(x.a, y.a, z.a), fused(x.b, y.b, z.b)}; }
QK_IN Wide fused_less(Wide x, Wide y, Wide z) { return {fused_less(x.a, y.a, z.a), fused_less(x.b, y.b, z.b)}; }
QK_IN WideMask operator<(Wide x, Wide y) { return {x.a < y.a, x.b < y.b}; }
QK_IN WideMask operator<=(Wide x, Wide y) { return {x.a <= y.a, x.b <= y.b}; }
QK_IN WideMask operator>(Wide x, Wide y) { return {x.a > y.a, x.b > y.b}; }
QK_IN WideMask operator>=(Wide x, Wide y) { return {x.a >= y.a, x.b >= y.b}; }
QK_IN WideMask operator&(WideMask x, WideMask y) { return {x.a & y.a, x.b & y.b}; }
QK_IN WideMask operator|(WideMask x, WideMask y) { return {x.a | y.a, x.b | y.b}; }
QK_IN bool any(WideMask m) { return any(m.a | m.b); }
QK_IN WideMask is_number(Wide x) { return {is_number(x.a), is_number(x.b)}; }
QK_IN Wide select(WideMask m, Wide x, Wide y) { return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)}; }
QK_IN Wide at_most(Wide v, Wide hi) { return {at_most(v.a, hi.a), at_most(v.b, hi.b)}; }
QK_IN Wide at_least(Wide v, Wide lo) { return {at_least(v.a, lo.a), at_least(v.b, lo.b)}; }
QK_IN Wide clamp(Wide v, Wide lo, Wide hi) { return at_most(at_least(v, lo), hi); }
QK_IN Wide absolute(Wide v) { return {absolute(v.a), absolute(v.b)}; }
QK_IN Wide round_even(Wide v) { return {round_even(v.a), round_even(v.b)}; }
QK_IN Wide pow2_floor(Wide v) { return {pow2_floor(v.a), pow2_floor(v.b)}; }
QK_IN Wide mantissa(Wide v) { return {mantissa(v.a), mantissa(v.b)}; }
QK_IN Wide larger(Wide x, Wide y) { return {larger(x.a, y.a), larger(x.b, y.b)}; }
QK_IN Wide times_pow2(Wide y, Wide n) { return {times_pow2(y.a, n.a), times_pow2(y.b, n.b)}; }
QK_IN Wide lookup(const float* table, Wide index) { return {lookup(table, index.a), lookup(table, index.b)}; }

template <class T> QK_IN Wide load_wide(const T* p) { return {load(p), load(p + kLanes)}; }
template <class T> QK_IN void store_wide(T* p, Wide v) { store(p, v.a), store(p + kLanes, v.b); }
// The first n < 32 elements, as load_part and store_part.
template <class T> QK_IN Wide load_wide_part(const T* p, int64_t n) {
  return n <= kLanes ? Wide(load_part(p, n), F(0.0f)) : Wide(load(p), load_part(p + kLanes, n - kLanes));
}
template <class T> QK_IN void store_wide_part(T* p, Wide v, int64_t n) {
  if (n <= kLanes) return store_part(p, v.a, n);
  store(p, v.a), store_part(p + kLanes, v.b, n - kLanes);
}
QK_IN Wide leading(Wide v, int64_t n) { return {leading(v.a, n), leading(v.b, n - kLanes)}; }
// sum, with terms added in the order of their elements: the same bits as one vector at a time.
QK_IN F add(F sum, Wide terms) { return (sum + terms.a) + terms.b; }
#else
using Wide = F;
template <class T> QK_IN Wide load_wide(const T* p) { return load(p); }
template <class T> QK_IN void store_wide(T* p, Wide v) { store(p, v); }
template <class T> QK_IN Wide load_wide_part(const T* p, int64_t n) { return load_part(p, n); }
template <class T> QK_IN void store_wide_part(T* p, Wide v, int64_t n) { store_part(p, v, n); }
QK_IN F add(F sum, Wide terms) { return sum + terms; }
#endif

constexpr int kWide = kLanes * int(sizeof(Wide) / sizeof(F));

}  // namespace
