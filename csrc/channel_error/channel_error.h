// channel_error, the maths: sums of x**2, k x and k**2 with k = round(clamp(x / step, lo, hi)), for CPU and CUDA alike.
#pragma once
#include <cstdint>
#include "../common/maths.h"

namespace qk {

constexpr int64_t kLongRun = 64;  // elements: shorter runs of a channel are taken side by side

template <class V>
struct ChannelSums {
  V a, t, u;
  QK_HD void add(float lo, float hi, float step, V x) {
    const V k = round_even(clamp(x / V(step), V(lo), V(hi)));
    a = a + x * x;
    t = t + k * x;
    u = u + k * k;
  }
};

}  // namespace qk
