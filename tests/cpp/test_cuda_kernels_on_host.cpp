// The CUDA kernels of the block-wise quantizers, thread by thread on the CPU (csrc/common/simt_host.h), against the plain loop.
// Small integers and powers of two: every sum is exact, so the results must be equal, in each order of the lanes.
#define QK_SIMT_HOST
#include <array>
#include <cmath>
#include <random>
#include <vector>
#include "check.h"
#include "../../csrc/common/quant_kernels.cuh"
#include "../../csrc/channel_error/channel_error.cuh"
#include "../../csrc/cpq/cpq.h"
#include "../../csrc/daq/daq.h"
#include "../../csrc/dropbits/dropbits.cuh"
#include "../../csrc/lsq/lsq.h"
#include "../../csrc/post/post.h"
#include "../../csrc/soft_assign/soft_assign.cuh"

using namespace qk;

static float number(std::mt19937& random) { return float(int(random() % 129) - 64) / 8; }

// Parameter k of a block: a power of two.
static float power(int k, std::mt19937& random) { return std::ldexp(1.0f, int(random() % 3) - 1); }
// Bounds 16 apart, and a scale.
static float bounds(int k, std::mt19937& random) { return k == 0 ? -8.0f : k == 1 ? 8.0f : power(k, random); }

template <template <class> class Op, class T>
static void run(const typename Op<float>::Args& args, int64_t P, int64_t L, float (*parameter)(int, std::mt19937&) = power,
                bool odd = false) {
  constexpr int N = Op<float>::kParams;
  std::mt19937 random(unsigned(P * 1000 + L));
  std::vector<T> room[4];
  T* at[4];
  for (int i = 0; i < 4; i++) {
    room[i].resize(P * L + 1);
    at[i] = room[i].data() + (odd && i % 2);  // g and dx: not where packs of 16 bytes start
  }
  const auto [x, g, y, dx] = at;
  std::vector<float> values[N];
  Params<N> params;
  for (int64_t i = 0; i < P * L; i++) {
    from_float(number(random), x + i);
    from_float(float(int(random() % 9) - 4), g + i);
  }
  for (int k = 0; k < N; k++) {
    for (int64_t p = 0; p < P; p++) values[k].push_back(parameter(k, random));
    params.p[k] = values[k].data();
  }
  if (P * L > 3) from_float(NAN, x + P * L / 2);
  const Blocks b = make_blocks(P, P * L);
  std::vector<float> partial(b.jobs * N, NAN), grads(P * N, NAN);
  quant_forward<Op, T>(args, b, x, params, y, nullptr);
  quant_backward<Op, T>(args, b, g, x, params, dx, partial.data(), grads.data(), nullptr);
  for (int64_t p = 0; p < P; p++) {
    const Op<float> op(args, params.p, p);
    float sums[N] = {}, terms[N];
    for (int64_t i = p * L; i < (p + 1) * L; i++) {
      T want;
      from_float(op.value(to_float(x[i])), &want);
      const float wx = to_float(want), gx = to_float(y[i]);
      CHECK(wx == gx || (wx != wx && gx != gx));
      from_float(op.grad(to_float(g[i]), to_float(x[i]), terms), &want);
      CHECK(to_float(want) == to_float(dx[i]));
      for (int k = 0; k < N; k++) sums[k] += terms[k];
    }
    for (int k = 0; k < N && L; k++) {
      const float got = grads[k * P + p];
      CHECK(sums[k] == got || (sums[k] != sums[k] && got != got));
    }
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
    terms[1] = x / x * (x * s);  // NaN where x is missing and 0
    return g;
  }
};

static void run_two_parameters(int64_t L) {
  const int64_t P = 3;
  std::mt19937 random(1);
  std::vector<float> x(P * L), g(P * L), dx(P * L), step{1, 2, 4};
  for (auto& v : x) v = float(int(random() % 4) - 4);
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

// The elements one by one, and their sums in double: the kernels' own sums, in another order, are off by their rounding.
template <class T>
static void run_soft_assign(int64_t P, int64_t L, int64_t K) {
  std::mt19937 random(unsigned(P * 1000 + L + K));
  std::vector<T> x(P * L), g(P * L), y(P * L, T{}), dx(P * L, T{});
  std::vector<float> levels(P * K), t(P);
  for (auto& v : x) from_float(number(random), &v);
  for (auto& v : g) from_float(float(int(random() % 9) - 4), &v);
  for (int64_t i = 0; i < P * K; i++) levels[i] = float(i % K - K / 2) + float(random() % 8) / 16;
  for (auto& v : t) v = std::ldexp(1.0f, int(random() % 3) - 1);
  if (P * L > 3) from_float(NAN, &x[P * L / 2]);
  const Blocks b = make_blocks(P, P * L);
  for (bool hard : {true, false}) {
    soft_assign_forward<T>(b, K, hard, x.data(), levels.data(), t.data(), y.data(), nullptr);
    for (int64_t i = 0; i < P * L; i++) {
      const float* q = &levels[i / L * K];
      const float v = to_float(x[i]), s = t[i / L] * kLog2e;
      float m = q[0], sum = 0, first = 0;
      for (int64_t k = 1; k < K; k++) m = midpoint(q[k - 1], q[k]) < v ? q[k] : m;
      for (int64_t k = 0; k < K; k++) {
        const float e = relative_weight(exponent(v, q[k], m, s));
        sum += e, first += e * (q[k] - m);
      }
      T want;
      from_float(v != v ? v : hard ? m : m + first / sum, &want);
      const float wanted = to_float(want), got = to_float(y[i]);
      CHECK(wanted == got || (wanted != wanted && got != got));
    }
  }
  std::vector<float> partial(b.jobs * (K + 1), NAN), dq(P * K, NAN), dt(P, NAN);
  soft_assign_backward<T>(b, K, g.data(), x.data(), levels.data(), t.data(), dx.data(), partial.data(), dq.data(), dt.data(), nullptr);
  if (b.jobs > 1) {  // one thread block for all jobs: shared memory is written again
    std::vector<float> again(partial.size(), NAN);
    std::vector<T> y_again(y.size(), T{}), dx_again(dx.size(), T{});
    const T *in = x.data(), *gradient = g.data();
    const float *q = levels.data(), *inverse = t.data();
    T *to = y_again.data(), *back = dx_again.data();
    float* sums = again.data();
    QK_LAUNCH((soft_assign_forward_kernel<T>), 1, kThreads, nullptr, b, int(K), false, in, q, inverse, to);
    QK_LAUNCH((soft_assign_backward_kernel<T>), 1, kThreads, nullptr, b, int(K), gradient, in, q, inverse, back, sums);
    CHECK(std::memcmp(to, y.data(), y.size() * sizeof(T)) == 0);
    CHECK(std::memcmp(back, dx.data(), dx.size() * sizeof(T)) == 0);
    for (size_t i = 0; i < again.size(); i++) CHECK(again[i] == partial[i] || (again[i] != again[i] && partial[i] != partial[i]));
  }
  for (int64_t p = 0; p < P && L; p++) {
    const float *q = &levels[p * K], s = t[p] * kLog2e;
    std::vector<double> sums(K + 1), sizes(K + 1);
    for (int64_t i = p * L; i < (p + 1) * L; i++) {
      const float v = to_float(x[i]);
      float m = q[0] + (v - v), sum = 0, first = 0, wanted = 0;
      for (int64_t k = 1; k < K; k++) m = midpoint(q[k - 1], q[k]) < v ? q[k] : m;
      for (int64_t k = 0; k < K; k++) {
        const float e = relative_weight(exponent(v, q[k], m, s));
        sum += e, first += e * (q[k] - m);
      }
      for (int64_t k = 0; k < K; k++) {
        const float power = exponent(v, q[k], m, s);
        float d = 0;
        const double term = soft_terms(v, q[k], relative_weight(power), power, t[p] + t[p],
                                       SoftPoint<float>{m, first / sum, to_float(g[i]) / sum}, wanted, d);
        sums[k] += term, sums[K] += d / double(s);
        sizes[k] += std::fabs(term), sizes[K] += std::fabs(d) / s;
      }
      T want;
      from_float(v == v ? wanted : 0.0f, &want);
      CHECK(to_float(want) == to_float(dx[i]));
    }
    for (int64_t k = 0; k <= K; k++) {
      const float got = k < K ? dq[p * K + k] : dt[p];
      CHECK(sums[k] != sums[k] ? got != got : std::fabs(got - sums[k]) <= 64 * 6e-8 * sizes[k]);  // at most 64 additions in a row
    }
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

// Values and dx are those of the elements one by one; the sums are, but for the order of adding.
template <class T>
static void run_dropbits(int bits, bool bitwise, int64_t P, int64_t L, float most_rho) {
  const int top = (1 << (bits - 1)) - 1, gates = bitwise ? bits - 1 : top, count = 2 + gates;
  const DropBitsArgs args{float(top), gates + 1, bitwise};
  std::mt19937 random(unsigned(P * 1000 + L + bits));
  std::vector<T> x(P * L), g(P * L), y(P * L, T{}), dx(P * L, T{});
  std::vector<float> step(P), sigma(P), keep(gates);
  for (auto& v : x) from_float(number(random), &v);
  for (auto& v : g) from_float(float(int(random() % 9) - 4), &v);
  for (auto& v : step) v = std::ldexp(12.0f, int(random() % 2) - bits);
  for (int64_t p = 0; p < P; p++) sigma[p] = step[p] / (0.5f + float(random() % 1024) / 1024 * (most_rho - 0.5f));
  for (auto& v : keep) v = random() % 4 ? float(1 + random() % 8) / 8 : 0.0f;
  if (P == 3) from_float(NAN, &x[P * L / 2]);  // the sums of all gates are then NaN
  const Blocks b = make_blocks(P, P * L);
  const Params<3> params{{step.data(), sigma.data(), keep.data()}};
  std::vector<float> partial(b.jobs * count, NAN), dstep(P, NAN), dsigma(P, NAN), dkeep(gates, NAN);
  dropbits_forward<T>(args, b, x.data(), params, y.data(), nullptr);
  dropbits_backward<T>(args, b, g.data(), x.data(), params, dx.data(), partial.data(), dstep.data(), dsigma.data(), dkeep.data(),
                       nullptr);
  if (b.jobs > 1) {  // one thread block for all jobs: shared memory is written again
    std::vector<float> again(partial.size(), NAN);
    std::vector<T> y_again(y.size(), T{}), dx_again(dx.size(), T{});
    const T *in = x.data(), *gradient = g.data();
    T *to = y_again.data(), *back = dx_again.data();
    float* sums = again.data();
    QK_LAUNCH((dropbits_forward_kernel<T>), 1, kThreads, nullptr, args, b, in, params, to);
    QK_LAUNCH((dropbits_backward_kernel<T>), 1, kThreads, nullptr, args, b, gradient, in, params, back, sums);
    CHECK(std::memcmp(to, y.data(), y.size() * sizeof(T)) == 0);
    CHECK(std::memcmp(back, dx.data(), dx.size() * sizeof(T)) == 0);
    for (size_t i = 0; i < again.size(); i++) CHECK(again[i] == partial[i] || (again[i] != again[i] && partial[i] != partial[i]));
  }
  std::vector<double> sums(2 * P + gates), sizes(2 * P + gates);
  for (int64_t p = 0; p < P; p++) {
    DropBitsTable table;
    const DropBits<float> op(args, params.p, p, table);
    op.fill(table, args, keep.data(), 0, 1);
    for (int64_t i = p * L; i < (p + 1) * L; i++) {
      const float v = to_float(x[i]), got = to_float(y[i]);
      T want;
      from_float(op.value(v), &want);
      CHECK(to_float(want) == got || (v != v && got != got));
      float terms[2], masses[kDropBitsLevels];
      DropBits<float>::Share share;
      const auto choice = op.choose(v);
      from_float(op.grad<true>(to_float(g[i]), v, choice, op.place(choice), terms, &share, masses), &want);
      CHECK(to_float(want) == to_float(dx[i]));
      const auto add = [&](size_t to, float term) { sums[to] += term, sizes[to] += std::fabs(term); };
      for (int k = 0; k < 2; k++) add(2 * p + k, terms[k]);
      for (int k = 1; k <= gates; k++)
        if (keep[k - 1] > 0) add(2 * P + k - 1, op.gate_gradient(choice, share, masses[k], k) / keep[k - 1]);
    }
  }
  // a chain of at most 32 (one thread of a job) + 5 + 8 (a block) + 1 + 5 + 8 (the jobs) additions, each of which rounds once
  for (int64_t v = 0; v < 2 * P + gates && L; v++) {
    const float got = v < 2 * P ? (v % 2 ? dsigma : dstep)[v / 2] : dkeep[v - 2 * P];
    CHECK(sums[v] != sums[v] ? got != got : std::fabs(got - sums[v]) <= 64 * 6e-8 * sizes[v]);
  }
}

// x in quarters, a step of a half: the sums are exact.
template <class T>
static void run_channel_error(int64_t outer, int64_t C, int64_t inner) {
  std::mt19937 random(unsigned(outer * 100 + C * 10 + inner));
  std::vector<T> x(outer * C * inner);
  for (auto& v : x) from_float(float(int(random() % 33) - 16) / 4, &v);
  const bool nan = C > 1;
  if (nan) from_float(NAN, &x[inner]);  // of channel 1
  const float step = 0.5f;
  const ChannelParts p = channel_parts(outer, C, inner);
  std::vector<float> partial(p.slots * C * p.parts * 3, NAN), again(partial.size(), NAN), sums(3 * C, NAN);
  channel_error<T>(outer, C, inner, -4, 3, &step, x.data(), partial.data(), sums.data(), nullptr);
  const T* in = x.data();
  const float* s = &step;
  float* out = again.data();  // one thread block for all jobs: shared memory is written again
  if (inner < kLongRun) {
    QK_LAUNCH((channel_error_columns_kernel<T>), 1, kThreads, nullptr, outer, C * inner, -4, 3, s, in, out);
  } else {
    const Blocks b = make_blocks(outer * C, outer * C * inner);
    QK_LAUNCH((channel_error_runs_kernel<T>), 1, kThreads, nullptr, b, -4, 3, s, in, out);
  }
  for (size_t i = 0; i < again.size(); i++) CHECK(again[i] == partial[i] || (again[i] != again[i] && partial[i] != partial[i]));
  for (int64_t c = 0; c < C; c++) {
    ChannelSums<float> want{0, 0, 0};
    for (int64_t o = 0; o < outer; o++)
      for (int64_t i = 0; i < inner; i++) want.add(-4, 3, step, to_float(x[(o * C + c) * inner + i]));
    const float wanted[3] = {want.a, want.t, want.u};
    for (int k = 0; k < 3; k++) {
      const float got = sums[k * C + c];
      CHECK(nan && c == 1 ? got != got : got == wanted[k]);
    }
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

// A quotient with 1 / s is that of the division: ties and their neighbors, any s and x.
static void run_divisor() {
  std::mt19937 random(2);
  const auto any = [&] { return from_bits(uint32_t(random())); };
  for (int i = 0; i < 300000; i++) {
    const float s = absolute(any());
    if (!(s > 0.0f) || std::isinf(s)) continue;
    const Divisor<float> by(s);
    const float tie = (float(random() % 1024) / 2) * s;
    for (float x : {any(), tie, std::nextafter(tie, 1e38f), std::nextafter(tie, -1e38f), INFINITY, -INFINITY}) {
      const float want = x / s, got = by.quotient(x);
      if (std::fabs(want) < 9.1e-13f) CHECK(std::fabs(got - want) <= 1e-18f);  // 2**-40
      else if (std::fabs(want) < 4194304.0f) CHECK(got == want);
      else CHECK(want != want ? got != got : got * want > 0.0f && std::fabs(got) >= 4194303.0f);
    }
  }
  CHECK(std::isnan(Divisor<float>(NAN).quotient(1.0f)) && std::isnan(Divisor<float>(1.0f).quotient(NAN)));
}

int main() {
  run_divisor();
  for (auto order : simt::kOrders) {
    simt::order = order;
    run_two_parameters(20003), run_two_parameters(1001);
    run_long_reduction();
    for (auto [outer, C, inner] : {std::array<int64_t, 3>{1, 1, 1}, {5, 7, 1}, {300, 33, 1}, {257, 3, 4}, {600, 2, 63}, {2, 3, 64},
                                   {3, 2, 300}, {2, 2, 8193}}) {
      run_channel_error<float>(outer, C, inner);
      if (inner < 300) run_channel_error<bfloat>(outer, C, inner);
    }
    // Several jobs, in the orders that differ most: the loops and their barriers are the same for all of these ops.
    if (simt::order == simt::kForward || simt::order == simt::kGreedy)
      for (auto [P, L] : {std::pair<int64_t, int64_t>{1, 8192}, {2, 8193}, {1, 20000}}) run<Lsq, float>({-8, 7}, P, L);
    if (simt::order == simt::kForward) run_soft_assign<float>(2, 8193, 5), run_dropbits<float>(5, true, 2, 8193, 6);
    for (auto [P, L] : {std::pair<int64_t, int64_t>{1, 0}, {1, 1}, {3, 5}, {20, 8}, {2, 255}, {2, 256}, {3, 257}, {1, 2048}, {2, 2049}}) {
      const DaqArgs exact{16, 1 / 16.0f, 2, 16, 0.5f, 1};  // T = 1: the gain is A, and every sum is exact
      run<Daq, float>(exact, P, L, bounds);
      run<Daq, bfloat>(exact, P, L, bounds, true);
      run<Lsq, float>({-8, 7}, P, L);
      run<Lsq, bfloat>({0, 15}, P, L);
      run<Lsq, half>({-2, 1}, P, L);
      run<Lsq, half>({-2, 1}, P, L, power, true);
      run<Post, float>(post_args(7, true, true), P, L);
      run<Post, half>(post_args(8, false, false), P, L);
      if (L > 257) continue;
      run_soft_assign<float>(P, L, 2 + L % 7);
      run_cpq<CpqArgmax>({-8, 7}, P, L);
      run_cpq<CpqArgmaxTruncated>({0, 15}, P, L);
      run_cpq<CpqFull>({-128, 127}, P, L);
      run_cpq<CpqFullTruncated>({-8, 7}, P, L);
      run_dropbits<float>(2 + L % 7, true, P, L, 6);
      if (simt::order == simt::kForward) run_dropbits<bfloat>(8 - L % 7, true, P, L, 100), run_dropbits<half>(2 + L % 3, false, P, L, 6);
    }
    if (simt::order == simt::kShuffled)
      for (float rho : {0.4f, 100.0f}) run_dropbits<float>(8, false, 2, 70, rho);
    run_soft_assign<half>(2, 300, 33);
    if (simt::order == simt::kGreedy) run_soft_assign<half>(2, 300, 32), run_soft_assign<half>(1, 300, 256);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
