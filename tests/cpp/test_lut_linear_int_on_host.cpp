// The integer kernels of packed weights under the sanitizers, on the instruction set QK_ISA, with buffers of exactly the size that
// lut_linear_int.h asks for, against the plain sums of segments. Scales, steps and biases are small powers of 2.
// QK_TILES_IN_SOFTWARE: the kernel for matrix tiles, with its instructions in software; QK_WITHOUT_VNNI: the one that needs no VNNI.
#ifdef QK_TILES_IN_SOFTWARE
#include "../../csrc/lut_linear_int/lut_linear_int_amx_simd.cpp"
#else
#include "../../csrc/common/simd.h"
#if QK_ISA == 512 && !defined(QK_WITHOUT_VNNI)
QK_ALSO("avx512vnni")
#endif
#include "../../csrc/lut_linear_int/lut_linear_int_rows.h"

namespace {

// Of the kernels for few rows one a width: the compiler needs minutes for all.
void linear(const Packed& w, const ByteLevels& levels, int64_t begin, int64_t end, const ByteRows& x, const float* bias, float* y,
            uint8_t* scratch) {
  for_bytes(w, levels, [&](auto of) {
    constexpr int bits = of.kBits, tables = of.kTables, M = bits <= kDirect ? bits : kDirect > 1 ? 2 : 1;
    constexpr bool wide = kWide<bits, tables>;
    if (x.M != M) return shared<bits, tables, wide>(w, levels, begin, end, x, bias, y, scratch);
    if (levels.x_signed) direct<bits, tables, true, wide, M>(w, levels, begin, end, x, bias, y);
    else direct<bits, tables, false, wide, M>(w, levels, begin, end, x, bias, y);
  });
}

}  // namespace
#if QK_ISA == 512 && !defined(QK_WITHOUT_VNNI)
QK_NO_MORE
#endif
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

// tables: 0, evenly spaced levels; 1 or 2: by table, even or even and odd. extreme: the last code and the largest x everywhere.
void run(int bits, int64_t N, int64_t K, int64_t group, int64_t M, bool is_signed, int tables, bool extreme = false) {
  std::mt19937 random(unsigned(bits + N + K + M));
  const int64_t stripes = (N + 15) / 16, G = K / group, p = bits == 3 ? 2 : bits;
  const auto tiles = [&](int64_t p) { return (K * p + 255) / 256; };
  const int count = bits == 8 && tables ? 32 : 1 << bits;
#ifdef QK_TILES_IN_SOFTWARE
  const int64_t most = 16;
  const int depth = group % 64 == 0 || group == K ? 2 : 1;
#else
  const int64_t most = kMost;
  const int depth = 1;
#endif
  Memory<uint8_t> codes(stripes * (tiles(p) + (bits == 3 ? tiles(1) : 0)) * 512);
  Memory<float> scale(stripes * G * 16), step(M), bias(N), y(M * N);
  const int32_t a = tables ? 128 : 1, b = tables == 2 ? 181 : 0;
  float even[256], odd[256] = {};
  int level[256];
  for (int c = 0; c < count; c++) {
    const bool of_odd = tables == 2 && c % 2;
    const int v = tables ? int(random() % 33) - 16 : 2 * c - count + 1;
    even[c] = float(of_odd ? 0 : v), odd[c] = float(of_odd ? v : 0), level[c] = of_odd ? b * v : a * v;
  }
  const qk::ByteLevels levels(even, odd, count, a, b, bits, is_signed);
  CHECK(levels.fit && (levels.tables == tables || (bits == 1 && levels.tables == 0)));
  const auto code_of = [&](int64_t n, int64_t k) { return extreme ? count - 1 : int((n * 7 + k * 13 + n * k) % count); };
  const auto pack = [&](uint8_t* plane, int p, int shift) {  // t16_offset of qkernels/pack.py
    const int64_t width = 256 / p;
    for (int64_t n = 0; n < N; n++)
      for (int64_t k = 0; k < K; k++) {
        const int64_t from = (n / 16 * tiles(p) + k / width) * 512 + (n % 8 * 4 + k % 32 / 8) * 16 + n % 16 / 8 * 8;
        const int part = code_of(n, k) >> shift & ((1 << p) - 1), s = int(k % width / 32), kSteps = 4 / p;
        if (p == 8) plane[from + k % 8] = uint8_t(part);
        else plane[from + s / kSteps * 4 + k % 8 / 2] |= uint8_t(part << (k % 2 * 4 + s % kSteps * p));
      }
  };
  pack(codes.data, int(p), 0);
  if (bits == 3) pack(codes.data + stripes * tiles(2) * 512, 1, 2);
  for (int64_t i = 0; i < stripes * G * 16; i++) scale[i] = i % 3 ? 0.5f : 2.0f;
  for (int64_t n = 0; n < N; n++) bias[n] = float(n % 5);
  for (int64_t m = 0; m < M; m++) step[m] = m % 2 ? 0.25f : 1.0f;
  const qk::Packed w{codes.data, even, scale.data, bits, N, K, group, G};
  qk::ByteRows rows{M, K, group, most, depth, step.data};
  Memory<uint8_t> memory(rows.room());
  rows.place(memory.data);
  const auto value = [&](int64_t m, int64_t k) {
    if (extreme) return is_signed ? -128 : 255;
    return int((m * 31 + k * 17) % 51) - (is_signed ? 25 : 0);
  };
  for (int64_t m = 0; m < M; m++)
    for (int64_t k = 0; k < K; k++) {
      const int64_t i = k % 8, at = bits == 8 ? i : i % 2 * 4 + i / 2;  // in the order of Quads
      const_cast<uint8_t*>(rows.bytes_of(m / rows.each, k / 32))[m % rows.each * rows.stride() + k % 32 / 8 * 8 + at] = uint8_t(value(m, k));
      const int64_t s = k / group * rows.of_group + k % group / qk::ByteRows::kSegment;
      rows.more_of(m / rows.each, s)[m % rows.each] += levels.c * value(m, k);
    }
#ifdef QK_TILES_IN_SOFTWARE
  Memory<uint8_t> scratch(qk::LutIntAmx::scratch(rows));
#else
  Memory<uint8_t> scratch(qk::LutInt::scratch(rows));
#endif
  linear(w, levels, 0, stripes, rows, bias.data, y.data, scratch.data);
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      float want = 0;
      int sum = 0;
      for (int64_t k = 0; k < K; k++) {
        sum += level[code_of(n, k)] * value(m, k);
        if (k + 1 < K && (k + 1) % group && (k + 1) % group % qk::ByteRows::kSegment) continue;
        want += float(sum) * scale[(n / 16 * G + k / group) * 16 + n % 16], sum = 0;
      }
      CHECK(y[m * N + n] == want * step[m] + bias[n]);
    }
}

// The integers of rows of any length: ties, what is clamped, infinities, and a NaN wherever it is. `want` is that of a number, NaN
// where the parameters of block p of two rows are none.
template <template <class> class Op, class T, class Args, class Want>
void quantizes(int64_t K, const Args& args, const float* const* params, const Want& want) {
  const int64_t M = 6, each = 2;
  Memory<T> x(M * K);
  Memory<uint8_t> to(M * K);
  Memory<char> numbers(M);
  const float values[] = {0.5f, -1.5f, 2.5f, -0.0f, 1e4f, -1e4f, INFINITY, -INFINITY, 3.25f, -7.0f, 127.5f};
  for (int64_t i = 0; i < M * K; i++) qk::from_float(values[i % 11], &x[i]);
  qk::from_float(NAN, &x[3 * K + K - 1]);
  const int dtype = sizeof(T) == 4 ? 0 : std::is_same_v<T, qk::half> ? 1 : 2;
  quantize<Op>(args, x.data, dtype, 0, 4, K, each, params, to.data, numbers.data);
  quantize<Op>(args, x.data, dtype, 4, M, K, each, params, to.data, numbers.data);
  for (int64_t m = 0; m < M; m++) {
    CHECK(numbers[m] == (m < 3));
    for (int64_t k = 0; k < K; k++) {
      const float v = m == 3 && k == K - 1 ? NAN : want(qk::to_float(x[m * K + k]), m / each);
      CHECK(to[m * K + k] == (v == v ? uint8_t(int(v)) : 0));
    }
  }
}

template <class T> void quantizes_as_lsq(int64_t K, float lo, float hi) {
  const float step[] = {1, 0.25f, -1}, *params[] = {step};
  quantizes<qk::Lsq, T>(K, qk::LsqArgs{lo, hi}, params, [&](float x, int64_t p) {
    return step[p] > 0 ? std::nearbyint(std::min(std::max(x / step[p], lo), hi)) : NAN;
  });
}

// n + 1 codes, half down, and by * code + lo.
template <class T> void quantizes_as_daq(int64_t K, float n, float by, float lo) {
  const float lower[] = {-2, 0, 1}, upper[] = {n - 2, 0.25f * n, 1}, scale[] = {1, 1, 1}, *params[] = {lower, upper, scale};
  quantizes<qk::Daq, T>(K, qk::DaqArgs{n, 1 / n, by, -lo, 0, 0}, params, [&](float x, int64_t p) {
    const float q = std::min(std::max((x - lower[p]) * (n / (upper[p] - lower[p])), 0.0f), n);
    return upper[p] > lower[p] ? by * (std::floor(q) + (q - std::floor(q) > 0.5f ? 1 : 0)) + lo : NAN;
  });
}

}  // namespace

int main() {
  for (int64_t K : {1, 15, 16, 17, 64, 100}) {
    quantizes_as_lsq<float>(K, -128, 127), quantizes_as_lsq<qk::half>(K, 0, 255), quantizes_as_lsq<qk::bfloat>(K, -8, 7);
    quantizes_as_daq<float>(K, 127, 2, -127), quantizes_as_daq<qk::half>(K, 255, 1, 0), quantizes_as_daq<qk::bfloat>(K, 14, 1, -7);
  }
#ifdef QK_TILES_IN_SOFTWARE
  const auto counts = {1, 16, 33, 49};
#else
  const auto counts = {1, 2, 3, 4, 9};
#endif
  for (int bits : {1, 2, 3, 4, 8})
    for (const auto& [N, K, group] : {std::array<int64_t, 3>{1, 1, 1}, {17, 96, 32}, {33, 70, 70}, {5, 384, 192}, {5, 4224, 4224}})
      for (int64_t M : counts)
        for (int kind = 0; kind < (bits == 1 ? 2 : 6); kind++)
          if (K < 4096 || (M > 8 && M < 48 && kind % 2)) run(bits, N, K, group, M, kind % 2, kind / 2);
  for (int bits : {1, 4, 8})
    for (int64_t M : counts)
      for (int kind = 0; kind < (bits == 1 ? 2 : 6); kind++) run(bits, 17, 128, 64, M, kind % 2, kind / 2, true);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
