// The AVX-512 BF16 kernel with its one special instruction in software, on a CPU that need not have it.
#define QK_DOT_PAIRS
#include "../../csrc/lut_linear/lut_bf16_simd.cpp"

#include <cmath>
#include <random>
#include <vector>
#include "check.h"

namespace {

// What is denormal becomes 0 of its sign, before and after.
__m512 flushed(__m512 v) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(_mm512_abs_ps(v), _mm512_set1_ps(1.17549435e-38f), _CMP_LT_OQ);
  return _mm512_mask_and_ps(v, tiny, v, _mm512_set1_ps(-0.0f));
}
// vdpbf16ps: the upper products, then the lower ones, each with one rounding to nearest even.
F dot_pairs(F sum, __m512i a, __m512i b) {
  const __m512i upper = _mm512_set1_epi32(int(0xffff0000));
  const auto high = [&](__m512i v) { return flushed(_mm512_castsi512_ps(_mm512_and_si512(v, upper))); };
  const auto low = [&](__m512i v) { return flushed(_mm512_castsi512_ps(_mm512_slli_epi32(v, 16))); };
  const __m512 first = flushed(_mm512_fmadd_ps(high(a), high(b), flushed(sum.v)));
  return flushed(_mm512_fmadd_ps(low(a), low(b), first));
}

float rounded(float f) { return qk::from_bits(qk::bits_of(f) & 0xffff0000u); }  // to a bfloat

struct Problem {
  int bits;
  int64_t N, K, group;
  std::vector<int> codes;
  std::vector<uint8_t> packed;
  std::vector<float> levels = std::vector<float>(256), scale;

  Problem(int bits_, int64_t n, int64_t k, int64_t g, std::mt19937& random, bool integers)
      : bits(bits_), N(n), K(k), group(g), codes(n * k) {
    for (int& c : codes) c = int(random() % (1u << bits));
    for (int c = 0; c < 1 << bits; c++) levels[c] = integers ? float(int(random() % 17) - 8) : rounded(float(random()) / 4e9f - 0.5f);
    if (bits == 8)  // evenly spaced ones are for these kernels
      for (int c = 0; c < 256; c++) levels[c] = float(c - 128) * (integers ? 1 : 0.0078125f);
    scale.resize((N + 15) / 16 * 16 * (K / group));
    for (float& s : scale) s = integers ? float(1 + random() % 4) : float(random()) / 4e9f;
    if (bits == 3) pack(2, 0), pack(1, 2);
    else pack(bits, 0);
  }
  void pack(int p, int shift) {  // t16_offset of qkernels/pack.py
    const int64_t width = 256 / p, tiles = (K + width - 1) / width, start = int64_t(packed.size());
    packed.resize(start + (N + 15) / 16 * tiles * 512);
    for (int64_t n = 0; n < N; n++)
      for (int64_t k = 0; k < K; k++) {
        const int64_t sub = k % width / 32, i = k % 8, per_word = p == 8 ? 1 : 4 / p;
        const int64_t lane = n % 8 * 4 + k % 32 / 8, in_lane = p == 8 ? i : sub / per_word * 4 + i / 2;
        const int64_t byte = (n / 16 * tiles + k / width) * 512 + lane * 16 + n % 16 / 8 * 8 + in_lane;
        packed[start + byte] |= uint8_t((codes[n * K + k] >> shift & ((1 << p) - 1)) << (p == 8 ? 0 : i % 2 * 4 + sub % per_word * p));
      }
  }
  double weight(int64_t n, int64_t k) const {
    return double(levels[codes[n * K + k]]) * scale[(n / 16 * (K / group) + k / group) * 16 + n % 16];
  }
};

float flushed(float v) { return std::fabs(v) < 1.17549435e-38f ? std::copysign(0.0f, v) : v; }
// Row n times one x in the order that lut_alone.h gives: pair after pair of an octet and a word, up to where a group ends or 16 units.
float in_its_order(const Problem& p, const float* x, int64_t n, float bias) {
  const int64_t steps = p.bits == 3 ? 2 : 4 / p.bits, units = (p.K + 64 * steps - 1) / (64 * steps) * steps;
  const auto column = [&](int64_t u, int w) { return ((u / steps * 2 + w) * steps + u % steps) * 32; };
  const auto group = [&](int64_t u, int w) { return column(u, w) < p.K ? column(u, w) / p.group : -1; };
  float total[2][4] = {}, d[2][4] = {};
  for (int64_t u = 0, begun = 0; u < units; u++) {
    for (int w = 0; w < 2; w++)
      for (int t = 0; t < 4; t++)
        for (int i = 0; i < 4; i++)
          for (int64_t k : {column(u, w) + 8 * t + i + 4, column(u, w) + 8 * t + i})
            if (k < p.K) d[w][t] = flushed(std::fma(p.levels[p.codes[n * p.K + k]], x[k], d[w][t]));
    if (u + 1 < units && u + 1 - begun < 16 && group(u + 1, 0) == group(u, 0) && group(u + 1, 1) == group(u, 1)) continue;
    for (int w = 0; w < 2; w++)
      for (int t = 0; t < 4; t++) {
        if (group(u, w) >= 0) total[w][t] = std::fma(d[w][t], p.scale[(n / 16 * (p.K / p.group) + group(u, w)) * 16 + n % 16], total[w][t]);
        d[w][t] = 0;
      }
    begun = u + 1;
  }
  const auto word = [&](const float (&t)[4]) { return (t[0] + t[1]) + (t[2] + t[3]); };
  return word(total[0]) + word(total[1]) + bias;
}

void run(int bits, int64_t N, int64_t K, int64_t group, int64_t M, bool integers) {
  std::mt19937 random(unsigned(bits * 1000 + K + M));
  const Problem p(bits, N, K, group, random, integers);
  std::vector<float> x(M * K), bias(N), y(M * N, NAN);
  for (float& v : x) v = integers ? float(int(random() % 9) - 4) : rounded(float(random()) / 2e9f - 1);
  for (float& v : bias) v = float(int(random() % 9) - 4);
  const int64_t height = (M + 1) / 2 * 2;
  std::vector<uint32_t> pairs((K + 31) / 32 * 16 * height);
  for (int64_t m = 0; m < M; m++)
    for (int64_t k = 0; k < K; k++)
      pairs[(k / 8 * 4 + k % 4) * height + m] |= qk::bits_of(x[m * K + k]) >> 16 << (k % 8 < 4 ? 0 : 16);
  Packed w{p.packed.data(), p.levels.data(), p.scale.data(), bits, N, K, group, K / group};
  w.uniform = bits == 8, w.base = p.levels[0], w.step = p.levels[1] - p.levels[0];
  const int64_t stripes = (N + 15) / 16;
  const qk::LutAlone& alone = qk::lut_pairs_avx512.alone;
  int64_t floats = 0, numbers = 0;
  if (M == 1) alone.room(w, &floats, &numbers);
  std::vector<float> spread(floats);
  std::vector<int32_t> groups(numbers);
  if (M == 1) alone.spread(w, x.data(), spread.data(), groups.data());
  for (int64_t begin = 0, end = stripes / 2; begin < stripes; begin = end, end = stripes) {
    if (M == 1) alone.linear(w, begin, end, spread.data(), groups.data(), bias.data(), {y.data(), 0});
    else qk::lut_pairs_avx512.linear(w, begin, end, pairs.data(), M, height, bias.data(), {y.data(), 0});
  }
  std::vector<double> weights(N * K);
  for (int64_t i = 0; i < N * K; i++) weights[i] = p.weight(i / K, i % K);
  for (int64_t m = 0; m < M; m++)
    for (int64_t n = 0; n < N; n++) {
      double want = bias[n], size = 0;
      const double* const row = weights.data() + n * K;
      const float* const of_x = x.data() + m * K;
      for (int64_t k = 0; k < K; k++) {
        const double product = row[k] * of_x[k];
        want += product, size += std::fabs(product);
      }
      if (M == 1) CHECK(y[n] == in_its_order(p, x.data(), n, bias[n]));
      if (integers) CHECK(y[m * N + n] == float(want));
      else CHECK(std::fabs(y[m * N + n] - want) <= 1.2e-7 * (size + 1) * 4);  // eps times what is added, a few roundings each
    }
}

}  // namespace

int main() {
  for (int bits : {1, 2, 3, 4, 8})
    for (int64_t M : {1, 2, 3, 4, 6, 7, 10, 12, 14, 15, 18, 20, 22, 24}) {
      if (M == 1 && (bits == 1 || bits == 8)) continue;  // which are not for these kernels
      for (int64_t K : {1, 7, 31, 33, 100, 129, 300}) run(bits, K % 40 + 1, K, K, M, true);
      for (int64_t group : {32, 64, 128, 256}) run(bits, 70, 3 * group, group, M, true);
      run(bits, 33, 512, 128, M, false);
    }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
