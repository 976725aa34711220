// A grid of step s under logistic noise of scale sigma, for the ops that differentiate the probabilities of its codes.
#pragma once
#include "functions.h"

namespace qk {

constexpr float kFar = 85.0f;  // sigma off a code: e**-85 is the end of float32, beyond it dx is 0

// From here on one code is certain, but at a tie. (85 sigma are still a number of codes beside 1/2; and what is 40 sigma off,
// and is taken for nothing, is nothing also times rho squared.)
constexpr float kMostRho = 1e6f;

template <class V>
struct NoisyStep {
  float step, ratio;  // NaN, both, where step or sigma is not positive
  V s, rho, back, reach;  // back: -rho
  Divisor<V> by;

  // The parameters are step [P], sigma [P]. rho is kept from least to kMostRho: below, the codes are as good as equally likely.
  // flaw: 0, or NaN where all is to be NaN.
  QK_HD NoisyStep(const float* const* params, int64_t p, float least, float flaw = 0.0f)
      : step(positive_or_nan(params[1][p] > 0.0f ? params[0][p] + flaw : 0.0f)), ratio(clamp(step / params[1][p], least, kMostRho)),
        s(step), rho(ratio), back(-ratio),
        reach(0.5f + kFar / ratio), by(s) {}

  // x / s less the code k, without cancellation; at most `reach` codes.
  QK_HD V rest(V x, V k) const { return clamp(by.rough(fused_less(k, s, x)), V(0.0f) - reach, reach); }
};

}  // namespace qk
