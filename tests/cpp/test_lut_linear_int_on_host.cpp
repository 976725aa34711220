// The integer kernels of packed weights under the sanitizers, on the instruction set QK_ISA, with buffers of exactly the size that
// lut_linear_int.h asks for, against the plain sum. Scales, steps and biases are small powers of 2: every result is exact.
// QK_TILES_IN_SOFTWARE: the kernel for matrix tiles, with its instructions in software.
#ifdef QK_TILES_IN_SOFTWARE
#include "../../csrc/lut_linear_int/lut_linear_int_amx_simd.cpp"
#else
#include "../../csrc/lut_linear_int/lut_linear_int_rows.h"
#endif
#include "../../csrc/lut_linear_int/lut_linear_int_quantize_simd.cpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <new>
#include <random>
#include "check.h"

namespace {

// Aligned as torch's memory is, so that a read beyond it is seen.
template <class T> struct Memory {
  T* data;
  explicit Memory(int64_t n) : data(static_cast<T*>(operator new[](n * sizeof(T), std::align_val_t(64)))) { memset(data, 0, n * sizeof(T)); }
  ~Memory() { operator delete[](data, std::align_val_t(64)); }
  T& operator[](int64_t i) const { return data[i]; }
};

void run(int bits, int64_t N, int64_t K, int64_t group, int64_t M, bool is_signed, bool has_odd) {
  std::mt19937 random(unsigned(bits + N + K + M));
  const int64_t stripes = (N + 15) / 16, width = 256 / bits, tiles = (K + width - 1) / width, G = K / group, blocks = (K + 31) / 32;
  const int count = bits == 4 ? 16 : 32, offset = is_signed ? PostKernels::kOffset : 0;
#ifdef QK_TILES_IN_SOFTWARE
  const int64_t each = qk::PostAmx::rows(M), rows = (M + each - 1) / each * each;
  const auto place = [&](int64_t m, int64_t k) { return (m / each * (blocks / 2) + k / 64) * each * 64 + m % each * 64 + k % 64; };
#else
  const int64_t rows = M;
  const auto place = [&](int64_t m, int64_t k) { return m * blocks * 32 + k; };
#endif
  Memory<uint8_t> codes(stripes * tiles * 512), x(rows * blocks * 32);
  Memory<float> scale(stripes * G * 16), step(M), bias(N), y(M * N);
  PostWeight w{};
  w.codes = codes.data, w.scale = scale.data, w.bits = bits, w.N = N, w.K = K, w.group = group, w.G = G, w.is_signed = is_signed;
  w.a = has_odd ? 128 : 1, w.b = has_odd ? 181 : 0;
  int level[32];
  for (int c = 0; c < 32; c++) {
    const bool odd = has_odd && c % 2;
    const int v = int(random() % 17) - 8;
    w.even[c] = int8_t((odd ? 0 : v) + offset), w.odd[c] = int8_t((odd ? v : 0) + offset);
    level[c] = odd ? w.b * v : w.a * v;
  }
  const auto code_of = [&](int64_t n, int64_t k) { return int((n * 7 + k * 13 + n * k) % count); };
  for (int64_t n = 0; n < N; n++)
    for (int64_t k = 0; k < K; k++) {  // t16_offset of qkernels/pack.py
      const int64_t from = (n / 16 * tiles + k / width) * 512 + (n % 8 * 4 + k % 32 / 8) * 16 + n % 16 / 8 * 8;
      if (bits == 8) codes[from + k % 8] = uint8_t(code_of(n, k));
      else codes[from + k % width / 32 * 4 + k % 8 / 2] |= uint8_t(code_of(n, k) << k % 2 * 4);
    }
  for (int64_t i = 0; i < stripes * G * 16; i++) scale[i] = i % 3 ? 0.5f : 2.0f;
  for (int64_t n = 0; n < N; n++) bias[n] = float(n % 5);
  const int64_t segments = qk::post_segments(w);
  Memory<int32_t> more(M * segments);
  const auto value = [&](int64_t m, int64_t k) { return int((m * 31 + k * 17) % 51) - (is_signed ? 25 : 0); };
  for (int64_t m = 0; m < M; m++) {
    step[m] = m % 2 ? 0.25f : 1.0f;
    for (int64_t k = 0; k < K; k++) {
      for (int i = 0; i < 8; i++)
        if (qk::post_column(bits, i) == k % 8) x[place(m, k / 8 * 8 + i)] = uint8_t(value(m, k));
      const int64_t s = k / group * (segments / G) + k % group / PostKernels::kSegment;
      more[m * segments + s] += offset * (w.a + w.b) * value(m, k);
    }
  }
#ifdef QK_TILES_IN_SOFTWARE
  Memory<uint8_t> scratch(qk::PostAmx::kBuffer + M * 64);
  linear(w, 0, stripes, x.data, M, step.data, bias.data, y.data, scratch.data);
#else
  linear(w, 0, stripes, x.data, M, more.data, step.data, bias.data, y.data);
#endif
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double want = 0;
      for (int64_t k = 0; k < K; k++) want += double(level[code_of(n, k)] * value(m, k)) * scale[(n / 16 * G + k / group) * 16 + n % 16];
      CHECK(y[m * N + n] == float(want * step[m] + bias[n]));
    }
}

// lsq's integers, of rows of any length: ties, what is clamped, infinities, and a NaN wherever it is.
template <class T> void quantizes(int64_t K, float lo, float hi) {
  const int64_t M = 6, each = 2;
  Memory<T> x(M * K);
  Memory<float> step(M / each);
  Memory<uint8_t> to(M * K);
  Memory<char> numbers(M);
  const float values[] = {0.5f, -1.5f, 2.5f, -0.0f, 1e4f, -1e4f, INFINITY, -INFINITY, 3.25f, -7.0f, 127.5f};
  for (int64_t i = 0; i < M * K; i++) qk::from_float(values[i % 11], &x[i]);
  qk::from_float(NAN, &x[3 * K + K - 1]);
  step[0] = 1, step[1] = 0.25f, step[2] = -1;
  const int dtype = sizeof(T) == 4 ? 0 : std::is_same_v<T, qk::half> ? 1 : 2;
  quantize({lo, hi}, x.data, dtype, 0, 4, K, each, step.data, to.data, numbers.data);
  quantize({lo, hi}, x.data, dtype, 4, M, K, each, step.data, to.data, numbers.data);
  for (int64_t m = 0; m < M; m++) {
    CHECK(numbers[m] == (m < 3));
    for (int64_t k = 0; k < K; k++) {
      const float v = std::nearbyint(std::min(std::max(qk::to_float(x[m * K + k]) / step[m / each], lo), hi));
      CHECK(to[m * K + k] == (m >= 4 || (m == 3 && k == K - 1) ? 0 : uint8_t(int(v))));
    }
  }
}

}  // namespace

int main() {
  for (int64_t K : {1, 15, 16, 17, 64, 100}) {
    quantizes<float>(K, -128, 127), quantizes<qk::half>(K, 0, 255), quantizes<qk::bfloat>(K, -8, 7);
  }
#ifdef QK_TILES_IN_SOFTWARE
  for (const auto& [N, K, group] : {std::array<int64_t, 3>{1, 64, 64}, {17, 192, 64}, {33, 128, 128}, {5, 384, 192}, {16, 4224, 4224}})
    for (int64_t M : {1, 2, 16, 17, 33, 49})
      for (int kind = 0; kind < 4; kind++) run(4, N, K, group, M, kind & 1, kind & 2);
  std::printf("%d failures\n", failures);
  return failures != 0;
#endif
  for (int bits : {4, 8})
    for (const auto& [N, K, group] : {std::array<int64_t, 3>{1, 1, 1}, {17, 96, 32}, {33, 70, 70}, {5, 192, 96}, {16, 128, 64}})
      for (int64_t M : {1, 2, 3, 7, 9})
        for (int kind = 0; kind < 4; kind++) run(bits, N, K, group, M, kind & 1, kind & 2);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
