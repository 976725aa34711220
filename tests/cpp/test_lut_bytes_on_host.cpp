// Levels by tables of bytes, of 8 bits on AVX-512 and of 3 and 4 on AVX2: to the bit what it gives without them, and where sums are exact,
// the plain sum.
#include "../../csrc/lut_linear/lut_bytes_simd.cpp"
#include "../../csrc/lut_linear/lut_alone_simd.cpp"
#include "../../csrc/lut_linear/lut_linear_simd.cpp"

#include "packed.h"

namespace {

// y = x w^T + bias in two ranges of stripes.
std::vector<float> rows(const LutKernels& kernels, const Packed& w, const std::vector<float>& x, int64_t M, const float* bias) {
  const int64_t tiles = (M + kernels.tile - 1) / kernels.tile, T = (M + tiles - 1) / tiles, padded = (w.K + 31) / 32 * 32;
  Memory<float> tiled(tiles * padded * T), sums(tiles * T * kernels.pair * 16), y(M * w.N);
  for (int64_t i = 0; i < tiled.size; i++) tiled[i] = 0;
  for (int64_t m = 0; m < M; m++)
    for (int64_t k = 0; k < w.K; k++) tiled[(m / T * padded + k) * T + m % T] = x[m * w.K + k];
  const int64_t stripes = (w.N + 15) / 16;
  kernels.linear(w, 0, stripes / 2, tiled.get(), M, T, bias, {y.get(), 0}, sums.get());
  kernels.linear(w, stripes / 2, stripes, tiled.get(), M, T, bias, {y.get(), 0}, sums.get());
  return {y.get(), y.get() + M * w.N};
}
std::vector<float> row(const LutAlone& kernels, const Packed& w, const std::vector<float>& x, const float* bias) {
  int64_t floats, numbers;
  kernels.room(w, &floats, &numbers);
  Memory<float> spread(floats), y(w.N);
  Memory<int32_t> groups(numbers);
  kernels.spread(w, x.data(), spread.get(), groups.get());
  const int64_t stripes = (w.N + 15) / 16;
  kernels.linear(w, 0, stripes / 2, spread.get(), groups.get(), bias, {y.get(), 0});
  kernels.linear(w, stripes / 2, stripes, spread.get(), groups.get(), bias, {y.get(), 0});
  return {y.get(), y.get() + w.N};
}

bool same(const std::vector<float>& a, const std::vector<float>& b) { return memcmp(a.data(), b.data(), a.size() * 4) == 0; }

#if QK_ISA == 512
const LutAlone &alone_by_bytes = lut_bytes_alone_avx512, &alone_plainly = lut_alone_avx512;
const LutKernels &by_bytes = lut_bytes_avx512, &plainly = lut_avx512;
#else
const LutAlone &alone_by_bytes = lut_alone_avx2, &alone_plainly = lut_alone_avx2;
const LutKernels &by_bytes = lut_avx2, &plainly = lut_avx2;
#endif

// factor: of the levels, which are whole numbers else; 1.2345678 fills all bytes of theirs.
void run(int bits, int64_t N, int64_t K, int64_t group, int64_t M, float factor) {
  const Weight weight(bits, N, K, group, factor);
  const Packed without = weight.packed();
  Packed w = without;
  w.narrow = factor == 1, w.prefers_bytes = true;
  std::mt19937 random(unsigned(M + K));
  std::vector<float> x(M * K), bias(N);
  for (float& v : x) v = factor == 1 ? float(int(random() % 9) - 4) : float(random()) / 2e9f - 1;
  for (float& v : bias) v = float(int(random() % 9) - 4);
  const float* const with = M % 2 ? bias.data() : nullptr;
  const std::vector<float> y = M == 1 ? row(alone_by_bytes, w, x, with) : rows(by_bytes, w, x, M, with);
  CHECK(same(y, M == 1 ? row(alone_plainly, without, x, with) : rows(plainly, without, x, M, with)));
  if (factor == 1) CHECK(y == exact_product<float>(weight, x, M, with));
  Memory<float> out(N * K), plain(N * K);
  by_bytes.dequantize(w, 0, weight.stripes, out.get());
  plainly.dequantize(without, 0, weight.stripes, plain.get());
  CHECK(memcmp(out.get(), plain.get(), N * K * 4) == 0);
}

}  // namespace

int main() {
  for (int bits : QK_ISA == 512 ? std::vector{8} : std::vector{3, 4})
    for (float factor : {1.0f, 1.2345678f})
      for (int64_t M : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 26}) {
        for (int64_t K : {1, 7, 31, 33, 100, 129, 300}) run(bits, K % 40 + 1, K, K, M, factor);
        for (int64_t group : {32, 64, 128, 256}) run(bits, 70, 3 * group, group, M, factor);
      }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
