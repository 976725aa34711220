// The CUDA kernels of the block-wise quantizers, thread by thread on the CPU (csrc/common/simt_host.h), against the plain loop.
// Small integers and powers of two: every sum is exact, so the results must be equal, in each order of the lanes.
#define QK_SIMT_HOST
#include <cmath>
#include <random>
#include <vector>
#include "check.h"
#include "../../csrc/common/quant_kernels.cuh"
#include "../../csrc/cpq/cpq.h"
#include "../../csrc/lsq/lsq.h"
#include "../../csrc/post/post.h"

using namespace qk;

static float number(std::mt19937& random) { return float(int(random() % 129) - 64) / 8; }

template <template <class> class Op, class T>
static void run(const typename Op<float>::Args& args, int64_t P, int64_t L) {
  std::mt19937 random(unsigned(P * 1000 + L));
  std::vector<T> x(P * L), g(P * L), y(P * L, T{}), dx(P * L, T{});
  std::vector<float> step(P);
  for (auto& v : x) from_float(number(random), &v);
  for (auto& v : g) from_float(float(int(random() % 9) - 4), &v);
  for (auto& v : step) v = std::ldexp(1.0f, int(random() % 3) - 1);
  if (P * L > 3) from_float(NAN, &x[P * L / 2]);
  const Blocks b = make_blocks(P, P * L);
  const Params<1> params{{step.data()}};
  std::vector<float> partial(b.jobs, NAN), grads(P, NAN);
  quant_forward<Op, T>(args, b, x.data(), params, y.data(), nullptr);
  quant_backward<Op, T>(args, b, g.data(), x.data(), params, dx.data(), partial.data(), grads.data(), nullptr);
  for (int64_t p = 0; p < P; p++) {
    const Op<float> op(args, params.p, p);
    float sum = 0, term;
    for (int64_t i = p * L; i < (p + 1) * L; i++) {
      T want;
      from_float(op.value(to_float(x[i])), &want);
      const float wx = to_float(want), gx = to_float(y[i]);
      CHECK(wx == gx || (wx != wx && gx != gx));
      from_float(op.grad(to_float(g[i]), to_float(x[i]), &term), &want);
      CHECK(to_float(want) == to_float(dx[i]));
      sum += term;
    }
    CHECK(L == 0 || sum == grads[p] || (sum != sum && grads[p] != grads[p]));
  }
}

// Two parameters, so that the sums of one follow those of the other through the same shared memory.
struct NoArgs {};
template <class V>
struct Pair {
  using Args = NoArgs;
  static constexpr int kParams = 2;
  float s;
  Pair(const NoArgs&, const float* const* params, int64_t p) : s(params[0][p]) {}
  V value(V x) const { return x; }
  V grad(V g, V x, V* terms) const {
    terms[0] = g;
    terms[1] = x * s;
    return g;
  }
};

static void run_two_parameters() {
  const int64_t P = 3, L = 20000;
  std::mt19937 random(1);
  std::vector<float> x(P * L), g(P * L), dx(P * L), step{1, 2, 4};
  for (auto& v : x) v = float(int(random() % 9) - 4);
  for (auto& v : g) v = float(int(random() % 9) - 4);
  const Blocks b = make_blocks(P, P * L);
  std::vector<float> partial(b.jobs * 2, NAN), grads(P * 2, NAN);
  const Params<2> params{{step.data(), step.data()}};
  quant_backward<Pair, float>({}, b, g.data(), x.data(), params, dx.data(), partial.data(), grads.data(), nullptr);
  for (int64_t p = 0; p < P; p++) {
    float sum_g = 0, sum_x = 0;
    for (int64_t i = p * L; i < (p + 1) * L; i++) sum_g += g[i], sum_x += x[i] * step[p];
    CHECK(grads[p] == sum_g);
    CHECK(grads[P + p] == sum_x);
  }
}

// The sums of cpq are of exponentials, so equal to the plain loop but for the order of adding.
template <template <class> class Op>
static void run_cpq(const CpqArgs& args, int64_t P, int64_t L) {
  std::mt19937 random(unsigned(P * 1000 + L));
  std::vector<float> x(P * L), g(P * L), y(P * L, NAN), dx(P * L, NAN), step(P), sigma(P);
  for (auto& v : x) v = number(random);
  for (auto& v : g) v = float(int(random() % 9) - 4);
  for (auto& v : step) v = std::ldexp(1.0f, int(random() % 3) - 1);
  for (int64_t p = 0; p < P; p++) sigma[p] = step[p] / float(1 + random() % 5);
  const Blocks b = make_blocks(P, P * L);
  const Params<2> params{{step.data(), sigma.data()}};
  std::vector<float> partial(b.jobs * 2, NAN), grads(P * 2, NAN);
  quant_forward<Op, float>(args, b, x.data(), params, y.data(), nullptr);
  quant_backward<Op, float>(args, b, g.data(), x.data(), params, dx.data(), partial.data(), grads.data(), nullptr);
  for (int64_t p = 0; p < P; p++) {
    const Op<float> op(args, params.p, p);
    float terms[2];
    double sums[2] = {}, sizes[2] = {};
    for (int64_t i = p * L; i < (p + 1) * L; i++) {
      CHECK(y[i] == op.value(x[i]));
      CHECK(dx[i] == op.grad(g[i], x[i], terms));
      for (int k = 0; k < 2; k++) sums[k] += terms[k], sizes[k] += std::fabs(terms[k]);
    }
    // a chain of at most 32 (one thread of a job) + 5 + 8 (a block) + 1 + 5 + 8 (the jobs) additions, each of which rounds once
    for (int k = 0; k < 2 && L; k++) CHECK(std::fabs(grads[k * P + p] - sums[k]) <= 64 * 6e-8 * sizes[k]);
  }
}

// More chunks than threads: every partial sum is added, once.
static void run_long_reduction() {
  const Blocks b{600 * kChunk, 600, 2 * 600};
  std::vector<float> partial(b.jobs), grads(2, NAN);
  for (size_t i = 0; i < partial.size(); i++) partial[i] = float(i % 600 * 3 + i / 600);
  const float* in = partial.data();
  float* out = grads.data();
  QK_LAUNCH((quant_reduce_kernel<1>), 2, kThreads, nullptr, b, in, out);
  for (int p = 0; p < 2; p++) CHECK(grads[p] == float(3 * 600 * 599 / 2 + 600 * p));
}

int main() {
  for (auto order : {simt::kForward, simt::kReverse, simt::kShuffled, simt::kGreedy}) {
    simt::order = order;
    run_two_parameters();
    run_long_reduction();
    for (auto [P, L] : {std::pair<int64_t, int64_t>{1, 0}, {1, 1}, {3, 5}, {2, 255}, {2, 256}, {3, 257}, {1, 8192}, {2, 8193}, {1, 20000}}) {
      run<Lsq, float>({-8, 7}, P, L);
      run<Lsq, bfloat>({0, 15}, P, L);
      run<Lsq, half>({-2, 1}, P, L);
      run<Post, float>(post_args(7, true, true), P, L);
      run<Post, half>(post_args(8, false, false), P, L);
      run_cpq<CpqArgmax>({-8, 7}, P, L);
      run_cpq<CpqArgmaxTruncated>({0, 15}, P, L);
      run_cpq<CpqFull>({-128, 127}, P, L);
      run_cpq<CpqFullTruncated>({-8, 7}, P, L);
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
