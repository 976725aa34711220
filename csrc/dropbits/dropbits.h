// DropBits, the maths: CPQ on a symmetric grid whose levels (groups of codes +-low .. +-high) carry gates Z in [0, 1].
//   u = x / s    rho = s / sigma    code = the one with the largest Z Phi, Phi = Phi(rho, u - code) its probability
//   q = Z* Phi* / D, D = sum of Z mass over the runs (a level is two runs, of which the mass is again Phi, with their width)
//   dx = g n rho q X    ds = g n (1 + rho q Y)    dsigma = -g n rho**2 q (u X + Y)    dZ = g n s (own Phi* - q mass) / D
// X and Y as in cpq.h: X = lv* - sum p lv over the runs, p = Z mass / D, lv = d log Phi / d(x / sigma), and the like.
//
// Everything is worked out for |x|, and relative to the nearest level that is not dropped: with m its distance in codes,
//   Phi e**(rho m) = (1 - e**-(w rho)) / (e**-(rho m) (1 + e**-(w rho)) + A + B)
// for a run of width w, A and B the odds e**(rho (distance - m)) of x being right of it and left of it. So a wide gap of
// dropped levels leaves ratios of ordinary numbers. Where the grid is not too wide in sigma, the odds of all edges are
// products of two exponentials of the element with constants of the block; elsewhere each takes its own exponential.
#pragma once
#include "../common/noisy_step.h"

namespace qk {

constexpr int kDropBitsLevels = 128;  // at most: 0, and one a magnitude at 8 bits

// Level k >= 1 of the bitwise sharing is 2**(k - 1) .. 2**k - 1, of the endpoints sharing the one magnitude k.
struct DropBitsArgs { float top; int levels; bool bitwise; };  // largest code; levels, with that of 0

constexpr float kDropBitsProducts = 60.0f;  // sigma from 0 to the end of the grid, for products: e**-87 is 0 in float32

struct DropBitsEdge { float at, down, up; };  // in codes, e**-(rho at), e**(rho at)

struct DropBitsLevel {
  float low, high, keep;
  float wide, mass, slope;         // of its runs, with w their width: e**-(w rho), 1 - that, w / (2 mass)
  DropBitsEdge first[2], last[2];  // the edges of its smallest and of its largest magnitude
};

// What the elements of a block have in common, beside a few numbers: one table for all of them, in a GPU's shared memory.
struct DropBitsTable {
  float right_down[16], left_up[16];  // of the code's own edges: e**-(rho (code + 1/2)) and e**(rho (code - 1/2))
  DropBitsLevel level[kDropBitsLevels];
};

template <class V>
struct DropBits : NoisyStep<V> {
  using Grid = NoisyStep<V>;
  using Grid::s, Grid::rho, Grid::reach, Grid::ratio;
  V top;
  int levels;
  bool products, tabulated;
  const DropBitsTable& table;  // fill it before anything else is asked

  // The parameters are step [P], sigma [P] and the gates [levels - 1].
  QK_HD DropBits(const DropBitsArgs& a, const float* const* params, int64_t p, const DropBitsTable& t)
      : Grid(params, p, 1e-18f, flaw(params[2], a.levels)), top(a.top), levels(a.levels), table(t) {
    products = ratio * (a.top + 0.5f) <= kDropBitsProducts;
    tabulated = products && a.top < 16.0f;
  }

  // NaN if a gate is not a finite number, else 0.
  QK_HD static float flaw(const float* keep, int levels) {
    float sum = 0.0f;
    for (int k = 1; k < levels; k++) sum += 0.0f * keep[k - 1];
    return sum;
  }

  // Entries first, first + stride, ... of the table: what one of `stride` threads has to do.
  QK_HD void fill(DropBitsTable& t, const DropBitsArgs& a, const float* keep, int first, int stride) const {
    for (int n = first; n < 16 && tabulated; n += stride) {
      t.right_down[n] = exponential(-(ratio * (float(n) + 0.5f))), t.left_up[n] = exponential(ratio * (float(n) - 0.5f));
    }
    for (int k = first; k < levels; k += stride) {
      const int low = k == 0 ? 0 : a.bitwise ? 1 << (k - 1) : k, last = k == 0 ? 0 : a.bitwise ? (1 << k) - 1 : k;
      const float w = float(last - low + 1), mass = -exponential_minus_one(-(w * ratio));
      DropBitsLevel& l = t.level[k];
      l.low = float(low), l.high = float(last), l.keep = k == 0 ? 1.0f : keep[k - 1];
      l.wide = 1.0f - mass, l.mass = mass, l.slope = w / (2.0f * mass);
      for (int side = 0; side < 2; side++) {
        l.first[side] = edge(float(low + side) - 0.5f, ratio);
        l.last[side] = edge(float(last + side) - 0.5f, ratio);
      }
    }
  }

  // What is 40 sigma further off than the nearest level adds nothing; larger odds would lead to denormal numbers.
  QK_HD V odds(V distance) const { return exponential(at_most(rho * distance, V(40.0f))); }
  QK_HD V product(V a, float b) const { return at_most(a * V(b), V(2.35385e17f)); }  // e**40

  QK_HD static DropBitsEdge edge(float at, float r) { return {at, exponential(-(r * at)), exponential(r * at)}; }

  struct Choice {
    V nearest, r;    // the nearest code to |x|, and |x| / s less that
    V m, e0;         // distance to the nearest level that is not dropped, in codes, and e**-(rho m)
    V up, down;      // e**(rho (|x| / s - m)) and e**-(rho (|x| / s + m)), for products
    V code, keep;    // what is chosen, and its gate
    V right, left;   // the odds A and B of the code
  };

  // The odds of |x| being right of an edge, and left of it; mirror: of the edge's mirror image.
  QK_HD V right_of(const Choice& c, const DropBitsEdge& e, bool mirror) const {
    if (products) return product(c.up, mirror ? e.up : e.down);
    return odds(((c.nearest - V(mirror ? -e.at : e.at)) + c.r) - c.m);
  }
  QK_HD V left_of(const Choice& c, const DropBitsEdge& e, bool mirror) const {
    if (products) return product(c.down, mirror ? e.down : e.up);
    return odds(((V(mirror ? -e.at : e.at) - c.nearest) - c.r) - c.m);
  }

  // The candidate of each level is its code nearest to x. Among equal gates the nearest wins, half to even, as without gates.
  QK_HD Choice choose(V x) const {
    const V zero(0.0f), half(0.5f), magnitude = absolute(x);
    Choice c;
    c.nearest = round_even(clamp(magnitude / s, zero, top));
    c.r = Grid::rest(magnitude, c.nearest);
    c.m = at_least((c.nearest - half) + c.r, zero);
    for (int k = 1; k < levels; k++) {
      if (!(table.level[k].keep > 0.0f)) continue;
      const V d = absolute((c.nearest - clamp(c.nearest, V(table.level[k].low), V(table.level[k].high))) + c.r);
      c.m = at_most(c.m, at_least(d - half, zero));
    }
    V near_right, near_left;
    if (products) {
      const Exponentials<V> at = exponentials(rho * (c.nearest + c.r)), shift = exponentials(rho * c.m);
      c.e0 = scaled(shift.down, zero - shift.n);
      c.up = scaled(at.up * shift.down, at.n - shift.n), c.down = scaled(at.down * shift.down, zero - at.n - shift.n);
    } else {
      c.e0 = exponential(zero - rho * c.m);
    }
    if (tabulated) {
      near_right = at_most(c.up * lookup(table.right_down, c.nearest), V(2.35385e17f));
      near_left = at_most(c.down * lookup(table.left_up, c.nearest), V(2.35385e17f));
    } else {
      near_right = odds((c.r - half) - c.m), near_left = odds(zero - ((c.r + half) + c.m));
    }
    const V floor = c.e0 * V(1.0f + table.level[0].wide);
    V distance, total;
    for (int k = 0; k < levels; k++) {
      if (!(table.level[k].keep > 0.0f)) continue;
      const DropBitsLevel& l = table.level[k];
      const V n = clamp(c.nearest, V(l.low), V(l.high)), keep = V(l.keep), off = (c.nearest - n) + c.r, d = absolute(off);
      const auto before = c.nearest < V(l.low), after = c.nearest > V(l.high);
      V right, left;
      if (products) {
        right = select(before, right_of(c, l.first[1], false), select(after, right_of(c, l.last[1], false), near_right));
        left = select(before, left_of(c, l.first[0], false), select(after, left_of(c, l.last[0], false), near_left));
      } else {
        right = odds((off - half) - c.m), left = odds(zero - ((off + half) + c.m));
      }
      const V sum = floor + (right + left);
      if (k == 0) {
        c.code = n, c.keep = keep, c.right = right, c.left = left, distance = d, total = sum;
        continue;
      }
      const auto same = (keep <= c.keep) & (c.keep <= keep), tie = (d <= distance) & (n >= c.nearest) & (n <= c.nearest);
      const V by_distance = select((d < distance) | tie, V(1.0f), zero), by_score = keep * total - c.keep * sum;
      const auto better = select(same, by_distance, by_score) > zero;
      c.code = select(better, n, c.code), c.keep = select(better, keep, c.keep);
      c.right = select(better, right, c.right), c.left = select(better, left, c.left);
      distance = select(better, d, distance), total = select(better, sum, total);
    }
    c.code = select(is_number(c.nearest), c.code, c.nearest);
    return c;
  }

  QK_HD V value(V x) const {
    const V y = choose(x).code * s;
    return select(x < V(0.0f), V(0.0f) - y, y);  // 0 - 0 is +0
  }

  // The runs of a level: the one that |x| may be in, and its mirror image. Two sums of at most e**41 each share a division.
  struct Runs { V floor, right[2], left[2], inverse[2]; };
  QK_HD Runs runs(const Choice& c, int k) const {
    const DropBitsLevel& l = table.level[k];
    Runs r{c.e0 * V(1.0f + l.wide), {right_of(c, l.last[1], false), right_of(c, l.first[0], true)},
           {left_of(c, l.first[0], false), left_of(c, l.last[1], true)}, {}};
    const V sums[2] = {r.floor + (r.right[0] + r.left[0]), k ? r.floor + (r.right[1] + r.left[1]) : V(1.0f)};
    const V per_sums = V(1.0f) / (sums[0] * sums[1]);
    r.inverse[0] = per_sums * sums[1], r.inverse[1] = per_sums * sums[0];
    return r;
  }

  // keep_k times the probability of level k, less what all have in common.
  QK_HD V mass(const Runs& r, int k) const {
    const V weight(table.level[k].keep * table.level[k].mass);
    return k ? fused(weight, r.inverse[1], weight * r.inverse[0]) : weight * r.inverse[0];
  }

  // What the gradients of the gates need of an element, beside its choice.
  struct Share { V scale, per_D; };  // g code s q, and 1 over the sum of all masses

  // The term of gate k >= 1, which is not 0; mass: that of its level.
  QK_HD V gate_gradient(const Choice& c, const Share& o, V mass, int k) const {
    const DropBitsLevel& l = table.level[k];
    const V chosen = select((c.code >= V(l.low)) & (c.code <= V(l.high)), V(1.0f), V(0.0f));
    return o.scale * ((chosen - mass * o.per_D) * V(1.0f / l.keep));
  }

  // dx; terms: of step and sigma; share: for the gates; masses, if they are wanted: of the levels that are not dropped.
  template <bool wanted>
  QK_HD V grad(V g, V x, const Choice& c, V* terms, Share* share, V* masses) const {
    const V zero(0.0f), one(1.0f);
    const V off = (c.nearest - c.code) + c.r;  // |x| / s less the code
    V D(0.0f), toward(0.0f), slope(0.0f);
    for (int k = 0; k < levels; k++) {
      const DropBitsLevel& l = table.level[k];
      if (!(l.keep > 0.0f)) continue;
      const Runs r = runs(c, k);
      for (int side = 0; side < 2; side++) {
        if (k == 0 && side == 1) break;
        const float center = (side ? -0.5f : 0.5f) * (l.low + l.high);
        const V inverse = r.inverse[side], weight = V(l.keep * l.mass) * inverse;
        const V both = r.right[side] + r.left[side];
        const V pull = (r.left[side] - r.right[side]) * inverse;  // d log mass / d(x / sigma); 1 + it has no cancellation
        toward = fused(weight, fused(V(2.0f), r.left[side], r.floor) * inverse, toward);
        const V widening = fused(V(4.0f * l.wide), c.e0, V(1.0f + l.wide) * both) * inverse;
        slope = fused(weight, fused_less(V(center) - c.code, pull, V(l.slope) * widening), slope);
      }
      const V m = mass(r, k);
      if constexpr (wanted) masses[k] = m;
      D = D + m;
    }
    const float wide = table.level[0].wide;
    const V floor = c.e0 * V(1.0f + wide);
    const V inverse = one / (floor + (c.right + c.left)), per_D = one / D;
    const V q = c.keep * ((V(table.level[0].mass) * inverse) * per_D);
    V X = fused_less(toward, per_D, fused(V(2.0f), c.left, floor) * inverse);
    const V widening = fused(V(4.0f * wide), c.e0, V(1.0f + wide) * (c.right + c.left)) * inverse;
    const V Y = fused_less(slope, per_D, V(table.level[0].slope) * widening);
    X = select(absolute(c.r) < reach, X, zero);
    const V n = select(x < zero, zero - c.code, c.code), gain = q * rho;
    terms[0] = fused(g * n, gain * fused_less(c.code, X, Y), g * n);
    terms[1] = zero - (g * n) * (gain * (rho * fused(off, X, Y)));
    *share = {(g * n) * (s * q), per_D};
    return select(is_number(x), (g * c.code) * (gain * X), zero);
  }
};

}  // namespace qk
