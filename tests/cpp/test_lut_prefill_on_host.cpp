// The prefill kernel of packed weights, thread by thread on the CPU: everything but what the matrix unit, its barriers and its copies
// do by themselves, for which csrc/common/wgmma.cuh has twins. Small integers: every sum is exact, so the results must be equal.
#define QK_SIMT_HOST
#include <cstdio>
#include "check.h"
#include "packed.h"
#include "../../csrc/lut_linear/lut_prefill.cuh"

template <class T, int BITS>
static std::vector<float> prefill(const Weight& w, const std::vector<float>& x, int64_t M, int splits, const float* bias) {
  Memory<T> rows(M * w.K), y(M * w.N);
  Memory<float> partial(splits > 1 ? splits * M * w.N : 0);
  Memory<unsigned char> image(prefill_bytes(BITS, M, w.K));
  for (int64_t i = 0; i < M * w.K; i++) from_float(x[i], &rows[i]);
  lut_prefill<T, BITS>({w.packed(), int(w.levels.size), rows.get(), M, w.K, bias, y.get(), partial.get(), {0, splits, 0}}, image.get(), nullptr);
  std::vector<float> out(M * w.N);
  for (int64_t i = 0; i < M * w.N; i++) out[i] = to_float(y[i]);
  return out;
}

template <class T, int BITS>
static void run(const Weight& w, int64_t M, int splits) {
  std::mt19937 random{unsigned(M)};
  std::vector<float> x(M * w.K);
  Memory<float> all(w.N);
  for (auto& v : x) v = random() % 8 ? 0.0f : float(int(random() % 3) - 1);
  for (int64_t n = 0; n < w.N; n++) all[n] = float(int(random() % 9) - 4);
  const float* bias = splits % 2 ? all.get() : nullptr;
  const std::vector<float> want = exact_product<T>(w, x, M, bias);
  for (auto order : simt::kOrders) {
    simt::order = order;
    CHECK((prefill<T, BITS>(w, x, M, splits, bias) == want));
  }
}

// Levels that T cannot hold come out as they are, to T's last place: one column of a row of x is 1, the scale is 1.
template <class T, int BITS>
static void run_terms() {
  Weight w(BITS, 20, 320, 320, 0.1f);
  for (int64_t i = 0; i < w.scale.size; i++) w.scale[i] = 1;
  for (int i = 0; i < 1 << BITS; i++) w.levels[i] *= 1 + float(i) / 77;
  std::vector<float> x(3 * w.K);
  for (int m = 0; m < 3; m++) x[m * w.K + m * 150] = 1;
  const std::vector<float> y = prefill<T, BITS>(w, x, 3, 1, nullptr);
  for (int m = 0; m < 3; m++)
    for (int64_t n = 0; n < w.N; n++) {
      T want;
      from_float(w.value(n, m * 150), &want);
      CHECK(to_float(want) == y[m * w.N + n]);
    }
}

template <int BITS>
static void run_bits() {
  int turn = BITS;
  for (int64_t group : {64, 128, 192, 0}) {
    const int64_t K = group ? group * (group == 64 ? 17 : 5) : 709;
    const Weight w(BITS, 150, K, group ? group : K);
    if (++turn % 2) run<bfloat, BITS>(w, group == 128 ? 130 : 65, 1 + turn % 3);
    else run<half, BITS>(w, group == 64 ? 129 : 70, 1 + turn % 3);
  }
  run_terms<half, BITS>();
  run_terms<bfloat, BITS>();
}

int main() {
  run_bits<1>();
  run_bits<2>();
  run_bits<3>();
  run_bits<4>();
  run_bits<8>();
  std::printf("%d failures\n", failures);
  return failures != 0;
}
