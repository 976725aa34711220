// CPQ, the maths: rounding forward, the gradient of category probabilities backward, for CPU and CUDA alike.
//   u = x / s    k = round(clamp(u, lo, hi))    y = k * s    rho = s / sigma    r = u - k
// Code n has the probability S(t(n + 1/2)) - S(t(n - 1/2)) with S the logistic sigmoid and t(c) = rho * (c - u) the edge c in
// units of sigma. Backward differentiates q, the probability of k (argmax), or E, the mean code (full); each may be divided by
// the mass Z of the grid (truncate). With w = k (argmax) or 1 (full), X = sigma dq/dx and Y = sigma dq/ds:
//   dx = g w rho X    ds = g (k + w rho Y)    dsigma = -g w rho**2 (u X + Y)    (q does not change if x, s, sigma grow alike)
// Y' = Y + k X, in which edges count from k, has no cancellation between large codes: Y = Y' - k X, u X + Y = r X + Y'.
//
// Everything is made of odds, each of which is small wherever it is one of many: e**-t right of x, e**t left of x. So no
// probability is a difference of numbers near 1, and what is far off the grid keeps its relative precision.
#pragma once
#include "../common/noisy_step.h"

namespace qk {

struct CpqArgs { float lo, hi; };  // smallest and largest code

// The least rho, beside which its square and inverse square are numbers; the mean of a truncated grid would be made of
// differences of rounded numbers over rho.
template <bool mean_of_truncated> constexpr float kCpqLeast = mean_of_truncated ? 1e-4f : 1e-18f;
constexpr float kCpqPaired = 128.0f;  // rho up to which the own code's edges share a reduction: its product with r keeps them
constexpr float kCpqNothing = 40.0f;  // sigma from the own code's edge, beyond which nothing is left of e**-t beside 1
constexpr float kCpqDecay = 20.0f;  // sigma off the grid, from where dx falls as e**-t to float32 precision

template <class V, bool full, bool truncate>
struct Cpq : NoisyStep<V> {
  using Grid = NoisyStep<V>;
  using Grid::s, Grid::rho, Grid::back, Grid::reach, Grid::by;
  using Args = CpqArgs;
  static constexpr int kParams = 2;  // step, sigma
  static constexpr int kVectors = full && truncate ? 2 : 4;  // that one has too many numbers in flight
  V lo, hi;
  V own, gain, pull;     // argmax: factor of the own code's odds, its truncated gain, d log(1 - e**-rho) / d rho (less Z's)
  V q, per_grid;         // full: e**-rho; 1 / (1 - e**-(K rho))
  V half_up, half_n;     // e**(-rho / 2) = half_up 2**half_n
  bool paired, tabulated;
  float powers[16];      // see power
  float far[2][3][16];   // see far_edges
  V sum0[3], sum1[3];    // full: coefficients of the sum of all edges further out, see far_edges
  int edges;             // full: pairs of edges that are summed one by one, an even number (the odds of what is no edge are 0)

  QK_HD Cpq(const Args& a, const float* const* params, int64_t p)
      : Grid(params, p, kCpqLeast<full && truncate>), lo(a.lo), hi(a.hi) {
    const float r = Grid::ratio, K = a.hi - a.lo + 1.0f;
    const float one = -exponential_minus_one(-r), all = -exponential_minus_one(-(K * r));
    own = V(one), gain = V(one / all), q = V(exponential(-r)), per_grid = V(1.0f / all);
    const float push = 1.0f / exponential_minus_one(r);
    pull = V(truncate ? push - K / exponential_minus_one(K * r) : push);
    paired = r <= kCpqPaired;
    const Exponentials<float> middle = exponentials(0.5f * (paired ? r : 0.0f));
    half_up = V(middle.down), half_n = V(-middle.n);
    // Sixteen entries serve a small grid, and any on which 15 codes off is as far as can be. (A thread of a GPU has no use for
    // a table.)
    tabulated = sizeof(V) > sizeof(float) && (K <= 16.0f || 15.0f * r > kCpqNothing) && (full || truncate);
    if (tabulated) for (int n = 0; n < 16; n++) powers[n] = decay(float(n), r);
    // Edges from the first left out on add less than 1e-8 of the sum, or what far_edges leaves out of it.
    const float window = (truncate ? kCpqDecay : 5.5f) / r;
    edges = ((window < K - 1.0f ? int(window) + 1 : int(K) - 1) + 1) / 2 * 2;
    for (int n = 1; n <= 3; n++) {
      const float rest = -exponential_minus_one(-(float(n) * r)), factor = n == 2 ? -2.0f : float(n);
      sum0[n - 1] = V(factor / rest);
      sum1[n - 1] = V(factor * exponential(-(float(n) * r)) / (rest * rest));
      float all = 0.0f, moment = 0.0f;
      for (int j = 0; j < 16 && tabulated && full && !truncate; j++) {
        far[0][n - 1][j] = all, far[1][n - 1][j] = moment;
        const float power = powers[j], odds = n == 1 ? power : n == 2 ? power * power : power * power * power;
        if (j >= edges) all += factor * odds, moment += (float(j) + 0.5f) * (factor * odds);
      }
    }
  }

  QK_HD V value(V x) const { return round_even(clamp(by.quotient(x), lo, hi)) * s; }

  // e**-(rho n) for a whole n: from the own code's edge to the end of the grid.
  template <class W>
  QK_HD static W decay(W n, W rho) {
    const W t = n * rho;
    return select(t > W(kCpqNothing), W(0.0f), exponential(W(0.0f) - t));
  }
  QK_HD static V entry(V n) { return at_most(n, V(15.0f)); }
  QK_HD V power(V n) const { return tabulated ? lookup(powers, entry(n)) : decay(n, rho); }

  // The odds of the own code's edges, e**(rho (r - 1/2)) and e**(-rho (r + 1/2)).
  QK_HD void own_edges(V r, V* up, V* down) const {
    if (paired) {
      const Exponentials<V> e = exponentials(rho * r);
      *up = scaled(e.up * half_up, half_n + e.n), *down = scaled(e.down * half_up, half_n - e.n);
    } else {
      *up = exponential(rho * (r - V(0.5f))), *down = exponential(V(0.0f) - rho * (r + V(0.5f)));
    }
  }

  // Sums over the edges j from `edges` to n - 1 with odds z q**j: f, and (j + 1/2) f; f = odds / (1 + odds)**2 = z - 2 z**2 +
  // 3 z**3 - ..., a geometric sum a power. For odds <= e**-5.5 what is left out is below 1e-8 of the first term.
  QK_HD V far_edges(V z, V n, V* weighted) const {
    V sums[2];
    for (int i = 0; i < 2; i++)
      sums[i] = z * fused(z, fused(z, lookup(far[i][2], n), lookup(far[i][1], n)), lookup(far[i][0], n));
    *weighted = sums[1];
    return sums[0];
  }
  // The same over all j = 0, 1, ..., and with j f: without a table.
  QK_HD V all_edges(V z, V* weighted) const {
    *weighted = z * fused(z, fused(z, sum1[2], sum1[1]), sum1[0]);
    return z * fused(z, fused(z, sum0[2], sum0[1]), sum0[0]);
  }

  QK_LONG void argmax_gradient(V k, V up, V down, V* w, V* X, V* Y) const {
    const V one(1.0f), half(0.5f);
    const V inverse = ratio(one, (one + up) * (one + down));
    if constexpr (!truncate) {
      *w = k * (own * inverse);
      *X = (down - up) * inverse;
      *Y = fused(half, fused(up, one + down, down * (one + up)) * inverse, pull);
    } else {
      const V after = hi - k, before = k - lo;
      const V top = up * power(after), bottom = down * power(before);
      const V ends = (one + top) * (one + bottom), inverse_ends = ratio(one, ends);
      const V per_up = (one + down) * inverse, per_down = (one + up) * inverse;  // 1 / (1 + odds) of each edge
      const V per_top = (one + bottom) * inverse_ends, per_bottom = (one + top) * inverse_ends;
      const V above = ((up - top) * per_up) * per_top;          // S(-t) of the upper edge less the same of the top: 0 at the top
      const V below = ((down - bottom) * per_down) * per_bottom;
      *w = k * (gain * (inverse * ends));
      *X = below - above;
      *Y = fused_less(before, bottom * per_bottom, fused_less(after, top * per_top, fused(half, above + below, pull)));
    }
  }

  QK_LONG void full_gradient(V k, V up, V down, V* X, V* Y) const {
    const V zero(0.0f), one(1.0f), half(0.5f);
    const V after = hi - k, before = k - lo;  // edges of the grid on either side of x
    const V top = up * power(after), bottom = down * power(before);
    const V inverse = ratio(one, (one + top) * (one + bottom));
    const V per_top = (one + bottom) * inverse, per_bottom = (one + top) * inverse;
    const V s_top = top * per_top, s_bottom = bottom * per_bottom;          // S(-t) of the top, S(t) of the bottom
    const V f_top = s_top * per_top, f_bottom = s_bottom * per_bottom;      // S (1 - S)
    V right = select(k < hi, up, zero), left = select(k > lo, down, zero);  // odds of edge j on either side; 0 if not there
    V sum(0.0f), weighted(0.0f), mean(0.0f);
    const auto step_out = [&](int j) {
      right = select(after > V(float(j)), right * q, zero), left = select(before > V(float(j)), left * q, zero);
    };
    const auto add_two = [&](int j) {  // two pairs of edges share a division; an edge that is there has odds <= 1
      const V first_right = right, first_left = left, both = (one + right) * (one + left);
      step_out(j + 1);
      const V next = (one + right) * (one + left), i = one / (both * next);
      for (int n = 0; n < 2; n++) {
        const V odds_right = n ? right : first_right, odds_left = n ? left : first_left, own_i = i * (n ? both : next);
        const V per_right = (one + odds_left) * own_i, per_left = (one + odds_right) * own_i;
        const V s_right = odds_right * per_right, s_left = odds_left * per_left, f_left = s_left * per_left;
        weighted = fused(V(float(j + n) + 0.5f), fused_less(s_right, per_right, f_left), weighted);
        if constexpr (truncate) {
          const V r_top = select(after > V(float(j + n)), s_right - s_top, zero);
          const V l_bottom = select(before > V(float(j + n)), s_left - s_bottom, zero);
          sum = fused(l_bottom, per_top - s_left, fused(r_top, per_bottom - s_right, sum));
          mean = mean + (r_top - l_bottom);
        } else {
          sum = sum + fused(s_right, per_right, f_left);
        }
      }
    };
    add_two(0);
    for (int j = 2; j < edges; j += 2) step_out(j), add_two(j);
    if constexpr (truncate) {
      const V per_Z = per_grid / (per_top * per_bottom);  // Z = (1 - e**-(K rho)) S(top) S(-bottom)
      const V e = mean * per_Z;                           // the mean code less k
      *X = sum * per_Z;
      const V ends = fused((after - e) * (after + half), f_top, weighted);
      *Y = fused_less((before + e) * (before + half), f_bottom, ends) * per_Z;
    } else {
      V r0, r1, l0, l1;  // from edge `edges` to the end of the grid
      if (tabulated) {
        r0 = far_edges(up, entry(after), &r1), l0 = far_edges(down, entry(before), &l1);
      } else {
        step_out(edges);
        const V first = V(float(edges)), from = first + half;
        const V end_right = select(after > first, top, zero), end_left = select(before > first, bottom, zero);
        V r2, l2;  // to infinity, less from the end of the grid to infinity
        const V r = all_edges(right, &r1), re = all_edges(end_right, &r2), l = all_edges(left, &l1), le = all_edges(end_left, &l2);
        r0 = r - re, r1 = fused(from, r, r1) - fused(after + half, re, r2);
        l0 = l - le, l1 = fused(from, l, l1) - fused(before + half, le, l2);
      }
      sum = sum + (r0 + l0);
      weighted = weighted + (l1 - r1);
      *X = fused(lo, f_bottom, fused_less(hi, f_top, sum));
      *Y = fused(hi, (after + half) * f_top, fused(lo, (before + half) * f_bottom, weighted));
    }
  }

  QK_HD V near() const { return V(0.5f) + V(kCpqDecay) / rho; }  // from here on dx of the truncated mean falls as e**-t

  // The first half of grad: the code, |x| / s less it, the odds of the code's edges.
  struct Start { V k, r, up, down; };
  QK_LONG Start start(V x) const {
    Start o;
    o.k = round_even(clamp(by.quotient(x), lo, hi)), o.r = Grid::rest(x, o.k);
    own_edges(full && truncate ? clamp(o.r, V(0.0f) - near(), near()) : o.r, &o.up, &o.down);
    return o;
  }

  QK_LONG V grad(V g, V x, V* terms) const { return grad(g, start(x), terms); }
  QK_LONG V grad(V g, const Start& o, V* terms) const {
    const V k = o.k, r = o.r;
    V w(1.0f), X, Y;
    if constexpr (full) full_gradient(k, o.up, o.down, &X, &Y);
    else argmax_gradient(k, o.up, o.down, &w, &X, &Y);
    if constexpr (full && truncate) X = X * exponential(at_most(rho * (near() - absolute(r)), V(0.0f)));
    const V scale = g * (w * rho);
    terms[0] = fused(scale, fused_less(k, X, Y), g * k);
    terms[1] = scale * (back * fused(r, X, Y));
    return select(absolute(r) < reach, scale * X, V(0.0f));  // 0 also where x is NaN
  }
};

template <class V> using CpqArgmax = Cpq<V, false, false>;
template <class V> using CpqArgmaxTruncated = Cpq<V, false, true>;
template <class V> using CpqFull = Cpq<V, true, false>;
template <class V> using CpqFullTruncated = Cpq<V, true, true>;

}  // namespace qk
