// DropBits, the maths: CPQ on a symmetric grid whose levels (groups of codes +-low .. +-high) carry gates Z in [0, 1].
//   u = x / s    rho = s / sigma    code = the one with the largest Z Phi, Phi = Phi(rho, u - code) its probability
//   q = Z* Phi* / D, D = sum of Z mass over the runs (a level is two runs, of which the mass is again Phi, with their width)
//   dx = g n rho q X    ds = g n (1 + rho q Y)    dsigma = -g n rho**2 q (u X + Y)    dZ = g n s (own Phi* - q mass) / D
// X and Y as in cpq.h: X = lv* - sum p lv over the runs, p = Z mass / D, lv = d log Phi / d(x / sigma), and the like.
//
// Everything is worked out for |x|. Forward: the chosen code grows with |x|, for the ratio of the probabilities of two codes
// does. So |x| / s is cut into pieces, in each of which the code is the nearest one of some levels (of equal gates).
//
// Backward, with m the distance to the nearest level that is not dropped, in codes:
//   Phi e**(rho m) = (1 - e**-(w rho)) / (e**-(rho m) (1 + e**-(w rho)) + A + B)
// for a run of width w, A and B the odds e**(rho (distance - m)) of x being right of it and left of it. So a wide gap of
// dropped levels leaves ratios of ordinary numbers. Each of the odds is an exponential of the element.
//
// Where the grid is not too wide in sigma there is one exponential d = e**-(rho |x| / s) and everything is made of the edges
// e of the runs, with E = e**-(rho e) constants of the block: p = 1 / (d + E) is the chance of e being right of x, times
// e**(rho |x| / s), and Q = E p that of it being left. The mass of a run is then (1 - e**-(w rho)) Q p, Q of its left edge and p
// of its right one; sum Z mass Y is the sum of Q p e over the edges, times the step of Z there; sum Z mass (1 + X) is that of
// Z mass (R + R), R = p d. Edges in pairs, e and -e, share a division: (d + E) (d + 1 / E) = d (d + E + 1 / E) + 1.
#pragma once
#include "../common/noisy_step.h"

namespace qk {

constexpr int kDropBitsLevels = 128;  // at most: 0, and one a magnitude at 8 bits

// Level k >= 1 of the bitwise sharing is 2**(k - 1) .. 2**k - 1, of the endpoints sharing the one magnitude k.
struct DropBitsArgs {
  float top;   // largest code
  int levels;  // with that of 0
  bool bitwise;
  QK_HD float low(int k) const { return float(k == 0 ? 0 : bitwise ? 1 << (k - 1) : k); }
  QK_HD float high(int k) const { return float(k == 0 ? 0 : bitwise ? (1 << k) - 1 : k); }
};

constexpr float kDropBitsProducts = 75.0f;  // sigma from 0 to the end of the grid, for products: e**-87 is 0 in float32

struct DropBitsPiece { float low, high, keep, middle, past; };  // from |x| / s > middle + past on: codes, their gate

struct DropBitsSpan { float low, high; };  // from one code to another none is dropped

struct DropBitsLevel {
  float low, high, keep;    // keep: 0 if it is dropped
  float wide, weight;       // of its runs, with w their width: e**-(w rho), keep (1 - that)
  float slope;              // w / (2 (1 - e**-(w rho)))
  float at, down, up, both; // its outer edge, for products: in codes, e**-(rho at), e**(rho at), the sum of the two
  float step;               // of the gates there: keep less that of the next level
};

// What the elements of a block have in common, beside a few numbers: one table for all of them, in a GPU's shared memory.
struct DropBitsTable {
  int pieces, spans;
  DropBitsPiece piece[kDropBitsLevels];
  DropBitsSpan span[kDropBitsLevels];
  DropBitsLevel level[kDropBitsLevels];
  float left_up[16];  // of a code's left edge: e**(rho (code - 1/2))
};

template <class V>
struct DropBits : NoisyStep<V> {
  using Grid = NoisyStep<V>;
  using Grid::s, Grid::rho, Grid::back, Grid::reach, Grid::ratio;
  V top;
  int levels;
  bool products, tabulated;
  float grow, most;            // e**rho, for products; the largest odds of the own code's left edge, whose squares are numbers
  const DropBitsTable& table;  // fill it before anything else is asked

  // The parameters are step [P], sigma [P] and the gates [levels - 1].
  QK_HD DropBits(const DropBitsArgs& a, const float* const* params, int64_t p, const DropBitsTable& t)
      : Grid(params, p, 1e-18f, flaw(params[2], a.levels)), top(a.top), levels(a.levels), table(t) {
    products = ratio * (a.top + 0.5f) <= kDropBitsProducts;
    tabulated = products && a.top < 16.0f;
    grow = exponential(ratio), most = exponential(43.0f - 0.5f * ratio);
  }

  // NaN if a gate is not a finite number, else 0.
  QK_HD static float flaw(const float* keep, int levels) {
    float sum = 0.0f;
    for (int k = 1; k < levels; k++) sum += 0.0f * keep[k - 1];
    return sum;
  }

  // How far from the middle between two codes |x| / s is where their gates, of which one is z <= 1 times the other, make up for
  // it; Inf if they do not anywhere. With y = rho times that, z (cosh(rho / 2) + cosh(y + h)) = cosh(rho / 2) + cosh(y - h)
  // for h = rho apart / 2, a quadratic equation in e**-y.
  QK_HD float balance(float apart, float z) const {
    const float far = exponential(-(ratio * apart)), lean = (1.0f - z) * (0.5f * (1.0f + exponential(-ratio))) *
                                                            exponential(-(0.5f * ratio * (apart - 1.0f)));
    if (!(z < 1.0f)) return 0.0f;
    if (!(z > far)) return from_bits(0x7f800000u);
    const float w = (z - far) / (lean + __builtin_sqrtf(fused(lean, lean, (1.0f - z * far) * (z - far))));
    return -logarithm(at_least(w, 1.2e-38f)) / ratio;
  }

  // From where on the codes of b are chosen and not those, nearer to 0, of a: between the nearest of either.
  QK_HD void start(const DropBitsPiece& a, DropBitsPiece& b) const {
    const bool outer = a.keep < b.keep;
    const float z = outer ? a.keep / b.keep : b.keep / a.keep;
    for (float n = a.high, m = b.low;; outer ? n-- : m++) {
      const float away = balance(m - n, z);
      b.middle = 0.5f * (n + m), b.past = outer ? -away : away;
      const float at = b.middle + b.past;
      if (outer ? !(at < n - 0.5f && n > a.low) : !(at > m + 0.5f && m < b.high)) return;
    }
  }

  // The pieces, by one thread.
  QK_HD void cut(DropBitsTable& t, const DropBitsArgs& a, const float* keep) const {
    int count = 0;
    for (int k = 0; k < levels;) {
      DropBitsPiece p{a.low(k), 0.0f, k == 0 ? 1.0f : keep[k - 1], 0.0f, 0.0f};
      do p.high = a.high(k++);
      while (k < levels && keep[k - 1] == p.keep);
      if (!(p.keep > 0.0f)) continue;
      for (; count > 0; count--) {  // what is not chosen anywhere goes
        const DropBitsPiece& last = t.piece[count - 1];
        start(last, p);
        if (!(p.middle + p.past < last.middle + last.past)) break;
      }
      if (count == 0) p.middle = p.past = 0.0f;
      if (p.past < 1e30f) t.piece[count++] = p;
    }
    t.pieces = count;
  }

  // Entries first, first + stride, ... of the table: what one of `stride` threads has to do.
  QK_HD void fill(DropBitsTable& t, const DropBitsArgs& a, const float* keep, int first, int stride) const {
    if (first == 0) {
      cut(t, a, keep);
      t.spans = 0;
      for (int k = 0; k < levels; k++) {
        if (k > 0 && !(keep[k - 1] > 0.0f)) continue;
        if (k > 1 && !(keep[k - 2] > 0.0f)) t.span[t.spans++] = {a.low(k), 0.0f};
        if (k == 0) t.span[t.spans++] = {0.0f, 0.0f};
        t.span[t.spans - 1].high = a.high(k);
      }
    }
    for (int n = first; n < 16 && tabulated; n += stride) t.left_up[n] = exponential(ratio * (float(n) - 0.5f));
    for (int k = first; k < levels; k += stride) {
      DropBitsLevel& l = t.level[k];
      l.low = a.low(k), l.high = a.high(k), l.keep = k == 0 ? 1.0f : at_least(keep[k - 1], 0.0f);
      const float w = l.high - l.low + 1.0f, mass = -exponential_minus_one(-(w * ratio));
      l.wide = 1.0f - mass, l.weight = l.keep * mass, l.slope = w / (2.0f * mass);
      l.step = l.keep - (k + 1 < levels ? at_least(keep[k], 0.0f) : 0.0f);
      l.at = l.high + 0.5f;
      if (products) l.down = exponential(-(ratio * l.at)), l.up = exponential(ratio * l.at), l.both = l.down + l.up;
    }
  }

  struct Choice { V nearest, r, code, keep; };  // the nearest code to |x|, |x| / s less that; what is chosen, and its gate

  // Within a piece the nearest code wins, half to even, as without gates.
  QK_HD Choice choose(V x) const {
    const V magnitude = absolute(x);
    Choice c;
    c.nearest = round_even(at_most(magnitude / s, top));
    c.r = Grid::rest(magnitude, c.nearest);
    const DropBitsPiece& inner = table.piece[0];
    V low(inner.low), high(inner.high);
    c.keep = V(inner.keep);
    for (int k = 1; k < table.pieces; k++) {
      const DropBitsPiece& p = table.piece[k];
      const auto here = (c.nearest - V(p.middle)) + c.r > V(p.past);
      low = select(here, V(p.low), low), high = select(here, V(p.high), high), c.keep = select(here, V(p.keep), c.keep);
    }
    c.code = clamp(c.nearest, low, high);
    return c;
  }

  QK_HD V value(V x) const {
    const V y = choose(x).code * s;
    return select(x < V(0.0f), V(0.0f) - y, y);  // 0 - 0 is +0
  }

  // m and e**-(rho m). For products also d and d e**(rho m).
  struct Place { V m, e0, d, dm; };
  QK_HD Place place(const Choice& c) const {
    const V zero(0.0f), one(1.0f);
    V m = at_least((c.nearest - V(table.span[0].high + 0.5f)) + c.r, zero);
    for (int k = 1; k < table.spans; k++) {
      const V n = clamp(c.nearest, V(table.span[k].low), V(table.span[k].high));
      m = at_most(m, at_least(absolute((c.nearest - n) + c.r) - V(0.5f), zero));
    }
    Place o{m, one, one, one};
    if (products) o.d = o.dm = normal_exponential(rho * ((m - c.nearest) - c.r));
    if (any(m > zero)) {
      o.e0 = exponential(zero - rho * m);
      if (products) o.d = exponential(zero - rho * (c.nearest + c.r));
    }
    return o;
  }

  // For products: p, R e**(rho m) and Q of the edges e and -e.
  struct Pair { V p[2], R[2], Q[2]; };
  QK_HD Pair pair(const Place& o, const DropBitsLevel& l) const {
    const V down(l.down), up(l.up), inverse = ::qk::ratio(V(1.0f), fused(o.d, o.d + V(l.both), V(1.0f)));
    const V right = (o.d + up) * inverse, left = (o.d + down) * inverse;
    return {{right, left}, {o.dm * right, o.dm * left}, {down * right, up * left}};
  }

  // Elsewhere: the runs of a level, the one that |x| may be in and its mirror image.
  struct Runs { V right[2], left[2], inverse[2]; };
  // What is 40 sigma further off than the nearest level adds nothing; larger odds would lead to denormal numbers.
  QK_HD V odds(V distance) const { return exponential(at_most(rho * distance, V(40.0f))); }
  QK_HD Runs runs(const Choice& c, const Place& o, int k) const {
    const DropBitsLevel& l = table.level[k];
    const V floor = o.e0 * V(1.0f + l.wide);
    Runs r;
    for (int side = 0; side < 2; side++) {
      const float first = side ? -l.high : l.low, last = side ? -l.low : l.high;
      r.right[side] = odds(((c.nearest - V(last + 0.5f)) + c.r) - o.m);
      r.left[side] = odds(((V(first - 0.5f) - c.nearest) - c.r) - o.m);
    }
    // two sums of at most e**41 each share a division
    const V sums[2] = {floor + (r.right[0] + r.left[0]), k ? floor + (r.right[1] + r.left[1]) : V(1.0f)};
    const V per_sums = V(1.0f) / (sums[0] * sums[1]);
    r.inverse[0] = per_sums * sums[1], r.inverse[1] = per_sums * sums[0];
    return r;
  }

  // keep times the probability of level k, less what all have in common; in, out: the pairs of edges at its ends.
  QK_HD V mass(const Pair& in, const Pair& out, int k) const {
    const V near = k ? in.Q[0] * out.p[0] : out.Q[1] * out.p[0];
    return V(table.level[k].weight) * (k ? fused(out.Q[1], in.p[1], near) : near);
  }
  QK_HD V mass(const Runs& r, int k) const {
    return V(table.level[k].weight) * (k ? r.inverse[0] + r.inverse[1] : r.inverse[0]);
  }
  QK_HD V mass(const Choice& c, const Place& o, int k) const {
    if (products) return mass(pair(o, table.level[k ? k - 1 : 0]), pair(o, table.level[k]), k);
    return mass(runs(c, o, k), k);
  }

  // Sums over the levels; masses, if they are wanted: of those that are not dropped.
  struct Sums { V D, toward, slope; };
  template <bool wanted>
  QK_HD Sums sum_pairs(const Choice& c, const Place& o, V* masses) const {
    Sums sum{V(0.0f), V(0.0f), V(0.0f)};
    Pair in;
    for (int k = 0; k < levels; k++) {
      const DropBitsLevel& l = table.level[k];
      const bool kept = l.keep > 0.0f;
      if (!kept && !(l.step < 0.0f)) continue;  // nothing on either side
      const Pair out = pair(o, l);
      if (kept) {
        const V right = k ? in.Q[0] * out.p[0] : out.Q[1] * out.p[0];
        V both = right, pull = right * ((k ? in.R[0] : out.R[1]) + out.R[0]);
        if (k) {
          const V left = out.Q[1] * in.p[1];
          both = right + left, pull = fused(left, in.R[1] + out.R[1], pull);
        }
        const V m = V(l.weight) * both;
        if constexpr (wanted) masses[k] = m;
        sum.D = sum.D + m, sum.toward = fused(V(l.weight), pull, sum.toward);
      }
      const V at(l.at);
      const V moment = fused(at - c.code, out.Q[0] * out.p[0], (at + c.code) * (out.Q[1] * out.p[1]));
      sum.slope = fused(V(l.step), moment, sum.slope);
      in = out;
    }
    return sum;
  }
  template <bool wanted>
  QK_HD Sums sum_runs(const Choice& c, const Place& o, V* masses) const {
    Sums sum{V(0.0f), V(0.0f), V(0.0f)};
    for (int k = 0; k < levels; k++) {
      const DropBitsLevel& l = table.level[k];
      if (!(l.keep > 0.0f)) continue;
      const Runs r = runs(c, o, k);
      for (int side = 0; side < 2; side++) {
        if (k == 0 && side == 1) break;
        const float center = (side ? -0.5f : 0.5f) * (l.low + l.high);
        const V inverse = r.inverse[side], weight = V(l.weight) * inverse, both = r.right[side] + r.left[side];
        const V floor = o.e0 * V(1.0f + l.wide);
        const V pull = (r.left[side] - r.right[side]) * inverse;  // d log mass / d(x / sigma); 1 + it has no cancellation
        sum.toward = fused(weight, fused(V(2.0f), r.left[side], floor) * inverse, sum.toward);
        const V widening = fused(V(4.0f * l.wide), o.e0, V(1.0f + l.wide) * both) * inverse;
        sum.slope = fused(weight, fused_less(V(center) - c.code, pull, V(l.slope) * widening), sum.slope);
      }
      const V m = mass(r, k);
      if constexpr (wanted) masses[k] = m;
      sum.D = sum.D + m;
    }
    return sum;
  }

  // What the gradients of the gates need of an element, beside its choice.
  struct Share { V scale, per_D; };  // g code s q, the same over the sum of all masses

  // keep times the term of gate k >= 1, which is not 0; mass: that of its level.
  QK_HD V gate_gradient(const Choice& c, const Share& o, V mass, int k) const {
    const DropBitsLevel& l = table.level[k];
    return fused_less(mass, o.per_D, select((c.code >= V(l.low)) & (c.code <= V(l.high)), o.scale, V(0.0f)));
  }

  // dx; terms: of step and sigma; share: for the gates; masses: see Sums.
  template <bool wanted>
  QK_HD V grad(V g, V x, const Choice& c, const Place& o, V* terms, Share* share, V* masses) const {
    const V zero(0.0f), one(1.0f), half(0.5f);
    const DropBitsLevel& own = table.level[0];  // of width 1, as the own code
    const V off = (c.nearest - c.code) + c.r;  // |x| / s less the code
    V q, per_D, X, Y;
    if (products) {
      const Sums sum = sum_pairs<wanted>(c, o, masses);
      const V up = tabulated ? lookup(table.left_up, c.code) : exponential(rho * (c.code - half));
      const V left = at_most(o.d * up, V(most)), left_m = at_most(o.dm * up, V(most));  // odds of its left edge
      const V a = one + left, b = fused(V(grow), left, one), inverse = ::qk::ratio(one, a * b);
      per_D = ::qk::ratio(one, sum.D);
      q = c.keep * ((V(own.weight * grow) * up) * (inverse * per_D));
      X = o.e0 * fused_less(sum.toward, per_D, (left_m * fused(V(2.0f * grow), left, V(1.0f + grow))) * inverse);
      Y = fused_less(sum.slope, per_D, V(own.slope) * (fused(a, a, (V(own.wide) + left) * b) * inverse));
    } else {
      const Sums sum = sum_runs<wanted>(c, o, masses);
      const V right = odds((off - half) - o.m), left = odds(zero - ((off + half) + o.m));
      const V floor = o.e0 * V(1.0f + own.wide), inverse = one / (floor + (right + left));
      per_D = one / sum.D;
      q = c.keep * ((V(own.weight) * inverse) * per_D);
      X = fused_less(sum.toward, per_D, fused(V(2.0f), left, floor) * inverse);
      const V widening = fused(V(4.0f * own.wide), o.e0, V(1.0f + own.wide) * (right + left)) * inverse;
      Y = fused_less(sum.slope, per_D, V(own.slope) * widening);
    }
    const V n = select(x < zero, zero - c.code, c.code), gain = q * rho, gn = g * n;
    terms[0] = fused(gn, gain * fused_less(c.code, X, Y), gn);
    terms[1] = gn * (gain * (back * fused(off, X, Y)));
    share->scale = gn * (s * q), share->per_D = share->scale * per_D;
    return select(absolute(c.r) < reach, (g * c.code) * (gain * X), zero);  // 0 also where x is NaN
  }
};

}  // namespace qk
