// The CUDA kernels of packed weights, thread by thread on the CPU (csrc/common/simt_host.h), against the plain sum. Small integers:
// every sum is exact, so the results must be equal.
#define QK_SIMT_HOST
#include <cstdio>
#include "check.h"
#include "packed.h"
#include "../../csrc/lut_linear/lut_decode.cuh"
#include "../../csrc/lut_linear/lut_dequantize.cuh"

template <class T>
static void run_dequantize(const Weight& w, int dtype) {
  Memory<T> out(w.N * w.K);
  CHECK(lut_dequantize_any(w.packed(dtype), int(w.levels.size), out.get(), dtype, nullptr) == cudaSuccess);
  for (int64_t n = 0; n < w.N; n++)
    for (int64_t k = 0; k < w.K; k++) {
      T want;
      from_float(w.value(n, k), &want);
      CHECK(std::memcmp(&out[n * w.K + k], &want, sizeof(T)) == 0);
    }
}

using Launch = cudaError_t (*)(const Decode&, cudaStream_t);

// x [M, K] times w; what the kernel returns in x's dtype, or with several splits their sum in float32.
template <class T>
static std::vector<float> decode(Launch launch, const Weight& w, const std::vector<float>& x, int64_t M, DecodePlan plan,
                                 const float* bias = nullptr, bool rounded = true) {
  const int64_t columns = decode_columns(w.bits), ld = ceil_div(w.K, columns) * columns;
  Memory<T> rows(M * ld), y(M * w.N);
  Memory<float> partial(plan.splits > 1 ? plan.splits * M * w.N : 0);
  for (int64_t i = 0; i < M * ld; i++) from_float(i % ld < w.K ? x[i / ld * w.K + i % ld] : 0.0f, &rows[i]);
  const bool wide = M % 2 == 0 || is_fine(w.group, w.K) || w.K == 32;  // of K = 32 kernels for fine groups are called
  const int scale_dtype = wide ? 0 : std::is_same_v<T, half> ? 1 : 2;
  launch({w.packed(scale_dtype), int(w.levels.size), rows.get(), M, ld, bias, y.get(), partial.get(), plan}, nullptr);
  std::vector<float> out(M * w.N);
  for (int64_t i = 0; i < M * w.N; i++) {
    out[i] = to_float(y[i]);
    if (rounded) continue;
    out[i] = partial[i];
    for (int s = 1; s < plan.splits; s++) out[i] += partial[s * M * w.N + i];
  }
  return out;
}

template <class T>
static void run_decode(Launch launch, const Weight& w, int64_t M, DecodePlan plan, bool with_bias) {
  std::mt19937 random{unsigned(M)};
  std::vector<float> x(M * w.K);
  Memory<float> all(w.N);
  for (auto& v : x) v = float(int(random() % 3) - 1);
  for (int64_t n = 0; n < w.N; n++) all[n] = float(int(random() % 9) - 4);
  const float* bias = with_bias ? all.get() : nullptr;
  const std::vector<float> want = exact_product<T>(w, x, M, bias);
  for (auto order : simt::kOrders) {
    simt::order = order;
    CHECK(decode<T>(launch, w, x, M, plan, bias) == want);
  }
}

// Levels that T cannot hold come out as they are: one column of x is 1, the scale is 1.
template <class T>
static void run_any_levels(Launch launch, int bits) {
  for (float factor : {0.1f, 3.14159e-7f, 2.71828e6f}) {
    Weight w(bits, 20, 32, 32, factor);
    for (int64_t i = 0; i < w.scale.size; i++) w.scale[i] = 1;
    for (int i = 0; i < 1 << bits; i++) w.levels[i] *= 1 + float(i) / 77;
    std::vector<float> x(3 * 32);
    for (int m = 0; m < 3; m++) x[m * 32 + m * 13] = 1;
    for (auto order : simt::kOrders) {
      simt::order = order;
      const std::vector<float> y = decode<T>(launch, w, x, 3, {2, 2, 8}, nullptr, false);  // one stripe after the other
      for (int m = 0; m < 3; m++)
        for (int64_t n = 0; n < w.N; n++) CHECK(y[m * w.N + n] == w.value(n, m * 13));
    }
  }
}

// A row alone has the bits that it has among others, whatever its values.
template <class T, int BITS>
static void run_batches(const Weight& w) {
  std::mt19937 random(1);
  std::vector<float> x(17 * w.K);
  for (auto& v : x) v = float(int(random() % 2001) - 1000) / 700;
  const std::vector<float> y = decode<T>(lut_decode_groups<T, BITS>, w, x, 17, {2, 2, 4});
  for (int m : {0, 7, 16}) {
    const std::vector<float> alone = decode<T>(lut_decode_groups<T, BITS>, w, {x.begin() + m * w.K, x.begin() + (m + 1) * w.K}, 1, {2, 2, 4});
    for (int64_t n = 0; n < w.N; n++) CHECK(bits_of(alone[n]) == bits_of(y[m * w.N + n]));
  }
}

// Every group, with an odd number of groups a row or of columns; every count of rows at which the kernel changes. The groups that
// are no power of two have more stripes than a thread block works on at a time, so that it goes several rounds.
template <int BITS>
static void run_bits() {
  int turn = BITS;
  run_dequantize<float>(Weight(BITS, 40, 96, 96), 0);  // fewer sub-blocks a row than a thread block takes at a time
  for (int64_t group : {32, 64, 96, 128, 160, 256, 0}) {
    const int64_t K = group ? group * (group == 32 ? 21 : group == 64 ? 11 : group == 128 ? 5 : 3) : 705;
    const bool high = group == 96 || group == 160;
    const Weight w(BITS, high ? 150 : 33, K, group ? group : K);
    run_dequantize<float>(w, 0);
    if (group % 64 == 0) run_dequantize<half>(w, 1), run_dequantize<bfloat>(w, 2);
    if (high) {
      for (DecodePlan plan : {DecodePlan{8, 1, 2}, {4, 2, 4}, {8, 3, 1}, {4, 1, 4}}) {
        if (++turn % 2) run_decode<bfloat>(lut_decode_groups<bfloat, BITS>, w, turn % 3 ? 9 : 3, plan, turn % 4 < 2);
        else run_decode<half>(lut_decode_groups<half, BITS>, w, turn % 3 ? 3 : 9, plan, turn % 4 < 2);
      }
      continue;
    }
    for (int64_t M : {1, 2, 4, 5, 8, 9, 16, 17, 33, 64}) {
      turn++;
      const DecodePlan plans[] = {{1, 1, 8}, {3, 1, 2}, {2, 2, 4}, {4, 3, 1}, {2, 1, 4}};
      const DecodePlan plan = plans[turn % 5];
      if (turn % 3) run_decode<bfloat>(lut_decode_groups<bfloat, BITS>, w, M, plan, turn % 2);
      else run_decode<half>(lut_decode_groups<half, BITS>, w, M, plan, turn % 2);
    }
    if (group % 128 == 64) run_batches<bfloat, BITS>(w);
    if (group == 256) run_batches<half, BITS>(w);
  }
  run_any_levels<bfloat>(lut_decode<bfloat, BITS, 1, true>, BITS);
  run_any_levels<half>(lut_decode<half, BITS, 2, false>, BITS);
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
