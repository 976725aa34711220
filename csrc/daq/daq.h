// DAQ, the maths: the nearest of N + 1 codes between two bounds, and the soft assignment's gradient, for CPU and CUDA alike.
//   q = clamp((x - l) (N / (u - l)), 0, N)   Q = floor(q) + [q - floor(q) > 1/2]    y = (2 Q - N) * (s / N)    (or Q * (s / N))
//   G = A coth((kappa + v) / 2), v = |1 - 2 (q - floor(q))| = 1 - 2 |q - Q|        h = g * 2 G s / (u - l)    (or half that)
//   dx = h    dl = -h (1 - x_n)    du = -h x_n, x_n = (x - l) / (u - l), where l <= x <= u, else 0            ds = g * y / s
// No exponential: coth((kappa + v) / 2) = T + (1 - T**2) / (T + t) with T = tanh(kappa / 2), a constant, and t = tanh(v / 2), an
// odd polynomial. Its terms are positive, so that nothing cancels, however small kappa is.
#pragma once
#include "../common/functions.h"

namespace qk {

struct DaqArgs {
  float n, inverse;     // N, 1 / N
  float twice, offset;  // level = twice * Q - offset: 2 and N, or 1 and 0; or, for lut_linear_int, 1 and N / 2
  float amplitude;      // A
  float base;           // T
};

inline DaqArgs daq_args(int64_t n, bool is_signed, double amplitude, double base) {
  return {float(n), 1.0f / float(n), is_signed ? 2.0f : 1.0f, is_signed ? float(n) : 0.0f, float(amplitude), float(base)};
}

// c + tanh(v / 2) for 0 <= v <= 1, to a relative error of 1.3e-8 of the latter before rounding (a minimax fit).
template <class V>
QK_HD V plus_tanh_half(V c, V v) {
  const V p = polynomial(v * v, 3.34668101369e-5f, -4.13953713838e-4f, 4.16399353715e-3f, -4.16663367426e-2f, 4.99999993436e-1f);
  return fused(p, v, c);
}

template <class V>
struct Daq {
  using Args = DaqArgs;
  static constexpr int kParams = 3;  // lower, upper, scale
  static constexpr int kVectors = 4;
  V lower, upper, codes_a_unit, n, twice, first, step, inverse, base, least, rise;  // G 2 s / (u - l) = least + rise / (T + t)
  QK_HD Daq(const Args& a, const float* const* params, int64_t p)
      : lower(params[0][p]), upper(params[1][p]), codes_a_unit(a.n / positive_or_nan(params[1][p] - params[0][p])), n(a.n),
        twice(a.twice), first(-a.offset), step(positive_or_nan(params[2][p]) * a.inverse), inverse(a.inverse),
        base(a.base), least(slope(a, params, p) * a.base), rise(slope(a, params, p) * (1.0f - a.base * a.base)) {}
  QK_HD static float slope(const Args& a, const float* const* params, int64_t p) {
    return params[2][p] * a.twice * a.amplitude / (params[1][p] - params[0][p]);
  }

  // The level of q in [0, N], half down, and how far q is from its code.
  QK_HD V level(V q, V* distance) const {
    const V even = round_even(q), above = q - even;
    *distance = absolute(above);
    return fused(select(above <= V(-0.5f), even - V(1.0f), even), twice, first);  // exact
  }

  QK_HD V integer(V x) const {
    V distance;
    return level(clamp((x - lower) * codes_a_unit, V(0.0f), n), &distance);
  }
  QK_HD V value(V x) const { return integer(x) * step + V(0.0f); }  // + 0: see post.h

  QK_HD V grad(V g, V x, V* terms) const {
    const V q = clamp((x - lower) * codes_a_unit, V(0.0f), n), unit = q * inverse;
    V distance;
    const V l = level(q, &distance), sum = plus_tanh_half(base, fused_less(V(2.0f), distance, V(1.0f)));
    const V h = g * fused(rise, ratio(V(1.0f), sum), least);
    const V dx = select((x >= lower) & (x <= upper), h, V(0.0f));  // 0 where x is NaN; unit is NaN there
    const V part = dx * unit;
    terms[0] = part - dx;
    terms[1] = V(0.0f) - part;
    terms[2] = g * (l * inverse);
    return dx;
  }
};

}  // namespace qk
