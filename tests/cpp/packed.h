// Packed weights for the host tests, their codes laid out by the definition, t16_offset of qkernels/pack.py.
#pragma once
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>
#include "check.h"
#include "../../csrc/common/bits.h"
#include "../../csrc/lut_linear/lut_linear.h"

using namespace qk;

static int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of exactly this size, aligned as torch's is, so that the sanitizer sees a read beyond it.
template <class T>
struct Memory {
  std::unique_ptr<T[], void (*)(T*)> data;
  int64_t size;
  explicit Memory(int64_t n)
      : data(static_cast<T*>(operator new[](n * sizeof(T), std::align_val_t(64))), [](T* p) { operator delete[](p, std::align_val_t(64)); }),
        size(n) {
    std::memset(data.get(), 0xff, n * sizeof(T));
  }
  T* get() const { return data.get(); }
  T& operator[](int64_t i) const { return data[i]; }
};

struct Weight {
  int bits;
  int64_t N, K, group, G, stripes;
  std::vector<int> code;  // [N, K]
  Memory<uint8_t> codes;
  Memory<float> levels, scale;
  Memory<uint16_t> low;  // scale in 16 bits, which hold it exactly

  static int64_t plane_bytes(int64_t N, int64_t K, int p) { return ceil_div(N, 16) * ceil_div(K, 256 / p) * 512; }
  static int64_t bytes(int64_t N, int64_t K, int bits) { return bits == 3 ? plane_bytes(N, K, 2) + plane_bytes(N, K, 1) : plane_bytes(N, K, bits); }

  void put_code(int64_t from, int p, int64_t n, int64_t k, int v) {
    const int64_t width = 256 / p, tile = n / 16 * ceil_div(K, width) + k / width, lane = n % 8 * 4 + k % 32 / 8;
    const int64_t sub = k % width / 32, start = from + tile * 512 + lane * 16 + n % 16 / 8 * 8;
    if (p == 8) codes[start + k % 8] = uint8_t(v);
    else codes[start + sub / (4 / p) * 4 + k % 8 / 2] |= uint8_t(v << (k % 2 * 4 + sub % (4 / p) * p));
  }

  // factor: of the levels, whose values are otherwise whole numbers from -2**(bits-1) on, in another order.
  Weight(int bits, int64_t N, int64_t K, int64_t group, float factor = 1)
      : bits(bits), N(N), K(K), group(group), G(K / group), stripes(ceil_div(N, 16)), code(N * K), codes(bytes(N, K, bits)),
        levels(int64_t(1) << bits), scale(stripes * G * 16), low(stripes * G * 16) {
    std::mt19937 random(unsigned(bits * 1000 + N + K + group));
    std::memset(codes.get(), 0, codes.size);
    for (int i = 0; i < 1 << bits; i++) levels[i] = float((i * 5 + 3) % (1 << bits) - (1 << (bits - 1))) * factor;
    for (int64_t i = 0; i < scale.size; i++) scale[i] = std::ldexp(float(int(random() % 3) + 1), int(random() % 3) - 1);
    for (int64_t n = 0; n < N; n++)
      for (int64_t k = 0; k < K; k++) {
        const int c = code[n * K + k] = int(random() % (1u << bits));
        if (bits == 3) put_code(0, 2, n, k, c & 3), put_code(plane_bytes(N, K, 2), 1, n, k, c >> 2);
        else put_code(0, bits, n, k, c);
      }
  }
  void fill(int c) {  // the same code everywhere
    std::memset(codes.get(), 0, codes.size);
    for (int64_t n = 0; n < N; n++)
      for (int64_t k = 0; k < K; k++) {
        code[n * K + k] = c;
        if (bits == 3) put_code(0, 2, n, k, c & 3), put_code(plane_bytes(N, K, 2), 1, n, k, c >> 2);
        else put_code(0, bits, n, k, c);
      }
  }
  // Ones in all bits of the columns that pad the last tiles: no product depends on them.
  void fill_padding() {
    for (int p : bits == 3 ? std::vector<int>{2, 1} : std::vector<int>{bits})
      for (int64_t n = 0; n < stripes * 16; n++)
        for (int64_t k = K; k < ceil_div(K, 256 / p) * (256 / p); k++)
          put_code(bits == 3 && p == 1 ? plane_bytes(N, K, 2) : 0, p, n, k, (1 << p) - 1);
  }
  // scale_dtype: as Output has it.
  Packed packed(int scale_dtype = 0) const {
    for (int64_t i = 0; i < scale.size; i++) {
      if (scale_dtype == 1) from_float(scale[i], reinterpret_cast<half*>(&low[i]));
      if (scale_dtype == 2) from_float(scale[i], reinterpret_cast<bfloat*>(&low[i]));
    }
    return {codes.get(), levels.get(), scale_dtype ? Scales(low.get(), scale_dtype) : Scales(scale.get()), bits, N, K, group, G};
  }
  float value(int64_t n, int64_t k) const {
    return levels[code[n * K + k]] * scale[(n / 16 * G + k / group) * 16 + n % 16] + 0.0f;
  }
};

// x [M, K] times w, plus bias if there is one, rounded to T: [M, N]. Of small integers every sum is exact.
template <class T>
std::vector<float> exact_product(const Weight& w, const std::vector<float>& x, int64_t M, const float* bias) {
  std::vector<float> values(w.N * w.K), y(M * w.N);
  for (int64_t i = 0; i < w.N * w.K; i++) values[i] = w.value(i / w.K, i % w.K);
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < w.N; n++) {
      float total = 0;
      for (int64_t k = 0; k < w.K; k++) total += values[n * w.K + k] * x[m * w.K + k];
      T rounded;
      from_float(bias ? total + bias[n] : total, &rounded);
      y[m * w.N + n] = to_float(rounded);
    }
  return y;
}
