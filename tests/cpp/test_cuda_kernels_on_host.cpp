// The CUDA kernels of the block-wise quantizers, thread by thread on the CPU (csrc/common/simt_host.h), against the plain loop.
// Small integers and powers of two: every sum is exact, so the results must be equal, in each order of the lanes.
#define QK_SIMT_HOST
#include <cmath>
#include <random>
#include <vector>
#include "check.h"
#include "../../csrc/common/quant_kernels.cuh"
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

int main() {
  for (auto order : {simt::kForward, simt::kReverse, simt::kShuffled}) {
    simt::order = order;
    for (auto [P, L] : {std::pair<int64_t, int64_t>{1, 0}, {1, 1}, {3, 5}, {2, 255}, {2, 256}, {3, 257}, {1, 8192}, {2, 8193}, {1, 20000}}) {
      run<Lsq, float>({-8, 7}, P, L);
      run<Lsq, bfloat>({0, 15}, P, L);
      run<Lsq, half>({-2, 1}, P, L);
      run<Post, float>(post_args(7, true, true), P, L);
      run<Post, half>(post_args(8, false, false), P, L);
    }
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
