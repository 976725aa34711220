#include "../common/simd.h"
#include "soft_assign.h"
#include "soft_assign_kernels.h"

namespace {

// A block's levels and their midpoints; NaN, all of them, where the temperature is not positive.
struct Levels {
  float q[qk::kMaxLevels], middle[qk::kMaxLevels];
  float s, t2;
  int64_t K;
  Levels(const float* levels, float temperature, int64_t count) : K(count) {
    const float t = qk::positive_or_nan(temperature);
    s = t * qk::kLog2e;
    t2 = t + t;
    for (int64_t k = 0; k < K; k++) q[k] = levels[k] + (t - t);
    for (int64_t k = 0; k + 1 < K; k++) middle[k] = qk::midpoint(q[k], q[k + 1]);
  }
  QK_IN F nearest(const Levels& l, F x) {
    F m = F(l.q[0]);
    for (int64_t k = 1; k < l.K; k++) m = select(F(l.middle[k - 1]) < x, F(l.q[k]), m);
    return m;
  }
};

// The nearest level, with the sums of the weights e and of e (q - m).
template <class Keep>
QK_IN F weigh(const Levels& l, F x, F& sum, F& first, Keep keep) {
  const F m = Levels::nearest(l, x);
  sum = first = F(0.0f);
  for (int64_t k = 0; k < l.K; k++) {
    const F q = F(l.q[k]), v = qk::exponent(x, q, m, F(l.s)), e = qk::relative_weight(v);
    sum = sum + e;
    first = fused(e, q - m, first);
    keep(k, e, v);
  }
  return m;
}

template <bool hard>
QK_IN F value(const Levels& l, F x) {
  x = qk::bounded(x);
  if constexpr (hard) return Levels::nearest(l, x) + (x - x);  // 0, or NaN
  F sum, first;
  const F m = weigh(l, x, sum, first, [](int64_t, F, F) {});
  return m + first / sum;
}

template <class T, bool hard>
void forward_jobs(const qk::Blocks& b, int64_t K, int64_t begin, int64_t end, const void* x, const float* levels,
                  const float* temperature, void* y) {
  for (int64_t job = begin; job < end; job++) {
    const auto [p, first, n] = qk::job_of(b, job);
    const T* in = static_cast<const T*>(x) + first;
    T* out = static_cast<T*>(y) + first;
    const Levels l(levels + p * K, temperature[p], K);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, value<hard>(l, load(in + i)));
    if (i < n) store_part(out + i, value<hard>(l, load_part(in + i, n - i)), n - i);
  }
}

template <class T>
void forward(const qk::Blocks& b, int64_t K, bool hard, int64_t begin, int64_t end, const void* x, const float* levels,
             const float* temperature, void* y) {
  (hard ? forward_jobs<T, true> : forward_jobs<T, false>)(b, K, begin, end, x, levels, temperature, y);
}

// dx; adds the terms of the levels, and last of the temperature times t log2(e), to sums [K + 1]: those of the first n lanes.
QK_IN F gradients(const Levels& l, F g, F x, int64_t n, F* sums) {
  const auto there = [n](F terms) { return n < kLanes ? leading(terms, n) : terms; };
  F e[qk::kMaxLevels], v[qk::kMaxLevels], sum, first;
  x = qk::bounded(x);
  const F m = weigh(l, x, sum, first, [&](int64_t k, F weight, F power) {
    e[k] = weight;
    v[k] = power;
  });
  const qk::SoftPoint<F> point{m, first / sum, g / sum};
  F dx = F(0.0f), dt = F(0.0f);
  for (int64_t k = 0; k < l.K; k++) sums[k] = sums[k] + there(qk::soft_terms(x, F(l.q[k]), e[k], v[k], F(l.t2), point, dx, dt));
  sums[l.K] = sums[l.K] + there(dt);
  return select(is_number(point.shift), dx, F(0.0f));
}

template <class T>
void backward(const qk::Blocks& b, int64_t K, int64_t begin, int64_t end, const void* g, const void* x, const float* levels,
              const float* temperature, void* dx, double* partial) {
  for (int64_t job = begin; job < end; job++) {
    const auto [p, first, n] = qk::job_of(b, job);
    const T* gi = static_cast<const T*>(g) + first;
    const T* xi = static_cast<const T*>(x) + first;
    T* out = static_cast<T*>(dx) + first;
    const Levels l(levels + p * K, temperature[p], K);
    F sums[qk::kMaxLevels + 1];
    for (int64_t k = 0; k <= K; k++) sums[k] = F(0.0f);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, gradients(l, load(gi + i), load(xi + i), kLanes, sums));
    if (i < n) store_part(out + i, gradients(l, load_part(gi + i, n - i), load_part(xi + i, n - i), n - i, sums), n - i);
    for (int64_t k = 0; k < K; k++) partial[job * (K + 1) + k] = sum(sums[k]);
    partial[job * (K + 1) + K] = sum(sums[K]) / double(l.s);
  }
}

}  // namespace

QK_KERNELS(SoftAssignKernels, soft_assign, {
    {forward<float>, forward<half>, forward<bfloat>}, {backward<float>, backward<half>, backward<bfloat>}})
