// lut_linear on matrix tiles: with its instructions in software (QK_TILES_IN_SOFTWARE), or on a processor that has them. The last
// line is a checksum of every result: both give the same bits.
#include "../../csrc/lut_linear/lut_amx_simd.cpp"

#include "packed.h"
#ifndef QK_TILES_IN_SOFTWARE
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

uint64_t checksum = 1469598103934665603ull;
void note(float f) { checksum = (checksum ^ bits_of(f)) * 1099511628211ull; }

template <class T> constexpr int kind = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 1 : 2;

// y = x w^T + bias, in two ranges of stripes; fits[m] as split says.
template <class T>
std::vector<float> product(const Weight& w, const std::vector<float>& x, int64_t M, const float* bias, std::vector<char>* fits = nullptr) {
  const BfloatLevels levels(w.levels.get(), int(w.levels.size));
  Memory<T> in(M * w.K), out(M * w.N);
  for (int64_t i = 0; i < M * w.K; i++) from_float(x[i], &in[i]);
  AmxRows rows{nullptr, M, w.K, 3 - kind<T>};
  Memory<uint16_t> data(rows.values());
  rows.data = data.get();
  std::vector<char> all(M);
  split(rows, 0, M / 2, in.get(), kind<T>, levels.least(), all.data());
  split(rows, M / 2, M, in.get(), kind<T>, levels.least(), all.data());
  Memory<uint8_t> scratch(LutAmx::scratch(rows));
  const qk::Output to{out.get(), kind<T>};
  Packed packed = w.packed();
  packed.base = w.levels[0], packed.step = w.levels[1] - w.levels[0], packed.uniform = w.bits == 8;
  for (int c = 0; c < w.levels.size; c++) packed.uniform &= std::fma(float(c), packed.step, packed.base) == w.levels[c];
  linear(packed, levels, 0, w.stripes / 2, rows, bias, to, scratch.get());
  linear(packed, levels, w.stripes / 2, w.stripes, rows, bias, to, scratch.get());
  std::vector<float> y(M * w.N);
  for (int64_t i = 0; i < M * w.N; i++) note(y[i] = qk::to_float(out[i]));
  if (fits) *fits = all;
  return y;
}

// factor: of the levels. 1 + 2**-9 makes them sums of two bfloat16 values, 1 + 2**-9 + 2**-17 of three, and every sum stays exact.
template <class T> void integers(int bits, int64_t N, int64_t K, int64_t group, int64_t M, float factor = 1, bool even = false) {
  const Weight w(bits, N, K, group, factor);
  for (int c = 0; even && c < 1 << bits; c++) w.levels[c] = float(c - (1 << (bits - 1))) * factor;
  std::mt19937 random(unsigned(M + K));
  std::vector<float> x(M * K), bias(N);
  for (float& v : x) v = factor == 1 ? float(int(random() % 9) - 4) : random() % 16 == 0;
  for (float& v : bias) v = float(int(random() % 9) - 4);
  const float* const with = M % 2 ? bias.data() : nullptr;
  CHECK(product<T>(w, x, M, with) == exact_product<T>(w, x, M, with));
}

// Values with all 24 bits, and levels too: no sum is exact.
template <class T> void numbers(int bits, int64_t N, int64_t K, int64_t group, int64_t M, float factor) {
  const Weight w(bits, N, K, group, factor);
  std::mt19937 random(unsigned(M + K));
  std::vector<float> x(M * K);
  for (float& v : x) {
    T t;
    from_float(float(random()) / 2147483648.0f - 1, &t);
    v = qk::to_float(t);
  }
  const std::vector<float> y = product<T>(w, x, M, nullptr);
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double want = 0, size = 0;
      for (int64_t k = 0; k < K; k++) {
        const double p = double(w.levels[w.code[n * K + k]]) * w.scale[(n / 16 * w.G + k / group) * 16 + n % 16] * x[m * K + k];
        want += p, size += std::fabs(p);
      }
      const double eps = kind<T> == 0 ? 0x1p-24 : kind<T> == 1 ? 0x1p-11 : 0x1p-8;
      CHECK(std::fabs(y[m * N + n] - want) <= 4 * 0x1p-24 * size + eps * std::fabs(want));
    }
}

void rows_that_do_not_fit() {
  const Weight w(4, 20, 70, 70);
  std::vector<float> x(6 * 70, 1.0f);
  x[0 * 70 + 69] = NAN, x[1 * 70] = INFINITY, x[2 * 70 + 5] = 1e-38f;  // the rest of row 2 is 1: the sum loses nothing
  for (int k = 0; k < 70; k++) x[3 * 70 + k] = k % 2 ? 1e-38f : -1e-38f, x[4 * 70 + k] = 0;
  std::vector<char> fits;
  const std::vector<float> y = product<float>(w, x, 6, nullptr, &fits);
  const char want[] = {0, 0, 1, 0, 1, 1};
  for (int m = 0; m < 6; m++) CHECK(fits[m] == want[m]);
  for (int n = 0; n < 20; n++) CHECK(y[n] == 0 && y[20 + n] == 0 && y[60 + n] == 0 && y[80 + n] == 0);
}

}  // namespace

int main() {
#ifndef QK_TILES_IN_SOFTWARE
  if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 77;
#endif
  for (int bits : {1, 2, 3, 4, 8}) {
    if (bits == 8 && !__builtin_cpu_supports("avx512vbmi")) continue;  // its tables are the processor's own instructions
    for (int64_t K : {1, 31, 33, 70, 129, 300}) integers<bfloat>(bits, K % 40 + 1, K, K, K % 5 + 1);
    for (int64_t group : {32, 64, 96, 128, 256}) integers<float>(bits, 35, 3 * group, group, group % 7 + 2);
    for (int64_t M : {2, 5, 6, 16, 17, 33}) {  // parts of a tile of x, one tile, pairs and a single one
      integers<float>(bits, 17, 160, 32, M);
      integers<half>(bits, 33, 64, 64, M);
      integers<bfloat>(bits, 40, 192, 64, M);
    }
    integers<float>(bits, 18, 96, 96, 4, 1 + 0x1p-9f);
    for (int64_t M : {20, 33, 49}) {  // of three tiles of x and more sums wait in memory where a chunk ends within a segment
      if (bits < 8) integers<bfloat>(bits, 18, 96, 96, M, 1 + 0x1p-9f + 0x1p-17f);  // else no sum is exact
      integers<bfloat>(bits, 35, 192, 96, M, 1 + 0x1p-9f);
    }
    for (float factor : {1.0f, 1.1f}) {
      numbers<float>(bits, 33, 256, 128, 7, factor);
      numbers<half>(bits, 33, 256, 64, 9, factor);
      numbers<bfloat>(bits, 33, 256, 256, 18, factor);
    }
  }
  for (int64_t M : {3, 20}) {  // evenly spaced
    integers<float>(8, 35, 96, 96, M, 1, true);
    integers<bfloat>(8, 35, 96, 96, M, 1 + 0x1p-9f, true);
  }
  rows_that_do_not_fit();
  std::printf("%d failures\n%016llx\n", failures, static_cast<unsigned long long>(checksum));
  return failures != 0;
}
