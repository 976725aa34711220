// lut_linear in integers, on the instruction set QK_ISA: the bits of its definition (csrc/lut_linear/lut_integers_simd.cpp), with 64-bit
// integers and doubles. With QK_TILES_IN_SOFTWARE the kernels for matrix tiles too, with QK_GFNI the kernel for eight rows a register; with
// QK_WITHOUT_VNNI, of those for one row, only what needs no VNNI.
#ifdef QK_GFNI
#include "../../csrc/lut_linear/lut_integers_eights_simd.cpp"  // first, for lut_quads.h needs what it has in force
#endif
#include "../../csrc/lut_linear/lut_integers_simd.cpp"
#if QK_ISA == 512
#include "../../csrc/lut_linear/lut_integers_turned_simd.cpp"
#endif
#if QK_ISA
#include "../../csrc/lut_linear/lut_integers_bytes_simd.cpp"
#endif
#ifdef QK_TILES_IN_SOFTWARE
#include "../../csrc/lut_linear/lut_integers_amx_simd.cpp"
#endif
#include <algorithm>
#include <cstdio>
#include "packed.h"

namespace {

template <class T> constexpr int kind = sizeof(T) == 4 ? 0 : std::is_same_v<T, half> ? 1 : 2;

// A row of y: levels are n times unit, x integers below 2**(full + 1).
std::vector<float> defined(const Weight& w, const std::vector<int64_t>& n, float unit, const float* x, const float* bias, int full) {
  std::vector<float> y(w.N);
  for (int64_t row = 0; row < w.N; row++) {
    float total = 0;
    for (int64_t k = 0; k < w.K;) {
      const int64_t end = std::min({(k / 128 + 1) * 128, (k / w.group + 1) * w.group, w.K});
      int64_t integer = 0;
      double most = 0;
      for (int64_t i = k; i < end; i++) most = std::max(most, std::fabs(double(x[i])));
      const int up = most > 0 ? full - std::ilogb(most) : 0;
      const int64_t group = k / w.group;
      for (; k < end; k++) integer += n[w.code[row * w.K + k]] * std::llrint(std::ldexp(double(x[k]), up));
      const int64_t rest = integer & 0xffff;
      const float value = std::fma(float((integer - rest) / 65536), 65536.0f, float(rest)) * (most > 0 ? std::ldexp(unit, -up) : 1);
      total = std::fma(value, w.scale[(row / 16 * w.G + group) * 16 + row % 16], total);
    }
    y[row] = bias ? total + bias[row] : total;
  }
  return y;
}

struct Given {
  const Weight& w;
  const IntegerLevels levels;
  explicit Given(const Weight& w) : w(w), levels(w.levels.get(), int(w.levels.size), w.bits) {}

  // A kernel for one row, or if x is turned for any, and how it takes x.
  struct Way {
    decltype(LutIntegers::alone) alone = nullptr;  // null: those for tiles
    bool paired = false, turned = false;
  };
  std::vector<Way> ways([[maybe_unused]] int digits) const {  // of so many digits
    std::vector<Way> all;
    [[maybe_unused]] const qk::Packed packed = w.packed();
#ifndef QK_WITHOUT_VNNI
    all.push_back({alone});
#if QK_ISA == 512
    if (LutIntegersTurned::takes(packed)) all.push_back({.alone = lut_integers_turned_avx512.linear, .turned = true});
#endif
#ifdef QK_GFNI
    if (LutIntegersEights::takes(packed)) all.push_back({.alone = lut_integers_eights_avx512.alone, .paired = w.bits < 8});
#endif
#endif
#if QK_ISA
    const LutIntegersBytes& bytes = QK_NAME(lut_integers_bytes);
    const bool whole = w.bits > 1 && w.bits < 8 && (w.group == w.K || w.group % (w.bits == 3 ? 128 : 256 / w.bits) == 0);  // tiles a group
    CHECK(bytes.takes(packed, digits) == (whole && (digits == 3 || QK_ISA == 512)));
    // Of four digits on AVX2 too, which splits x for AVX-512's kernel where there is no VNNI.
    if (whole) all.push_back({.alone = digits > bytes.digits ? bytes_of<4> : bytes.alone, .paired = true});
#endif
    return all;
  }

  // y of M rows, [M][N]; none of one row if it does not fit, and 0 in such a row of several. By the kernels for tiles, or by a way.
  template <class T>
  std::vector<float> product(const float* x, int64_t M, const float* bias, const Way& way = {}, std::vector<char>* fits = nullptr) const {
    const bool tiles = !way.alone;
    Memory<T> in(M * w.K), out(M * w.N);
    for (int64_t i = 0; i < M * w.K; i++) from_float(x[i], &in[i]);
    IntegerRows rows{.M = M, .K = w.K, .group = w.group, .bits = w.bits, .digits = kind<T> ? 3 : 4,
                     .for_tiles = tiles, .paired = way.paired, .turned = way.turned};
    Memory<uint8_t> memory(rows.room());
    rows.place(memory.get());
    const int64_t used = QK_ISA == 512 || way.paired ? rows.tiles * rows.units * rows.height() * rows.stride() : rows.bytes();
    std::fill(memory.get() + used, memory.get() + rows.bytes(), uint8_t(0xa5));
    std::vector<char> all(M);
    split(rows, levels, 0, M / 2, in.get(), kind<T>, all.data());
    split(rows, levels, M / 2, M, in.get(), kind<T>, all.data());
    if (fits) *fits = all;
    CHECK(std::all_of(memory.get() + used, memory.get() + rows.bytes(), [](uint8_t byte) { return byte == 0xa5; }));
    if (way.turned && kind<T>)
      for (int64_t m = 0; m < M; m++)
        for (int64_t b = 0; all[m] && b < rows.units; b++) {
          const uint8_t* digit = rows.bytes_of(m / rows.each, b) + m % rows.each * rows.digits * 32;
          int marks = 0;
          for (int i = 0; i < 32; i++) marks |= (digit[i] != 0) << i / 4;
          CHECK(rows.lowest_of(m / rows.each, b)[m % rows.each] == marks);
        }
    for (int64_t begin = 0, end = w.stripes / 2; begin < w.stripes; begin = end, end = w.stripes) {
      Memory<T> part(M * w.N);
      const qk::Output to{part.get(), kind<T>};
#ifdef QK_TILES_IN_SOFTWARE
      Memory<uint8_t> scratch(LutIntegersAmx::scratch(rows));
      if (tiles) linear(w.packed(), levels, begin, end, rows, bias, to, scratch.get());
      else
#endif
      way.alone(w.packed(), levels, begin, end, rows, bias, to);
      for (int64_t i = 0; i < M * w.N; i++) {
        const int64_t stripe = i % w.N / 16;
        if (stripe >= begin && stripe < end) out[i] = part[i];
        else CHECK(std::isnan(qk::to_float(part[i])));  // as Memory was
      }
    }
    std::vector<float> y(M * w.N);
    for (int64_t i = 0; i < M * w.N; i++) y[i] = qk::to_float(out[i]);
    return y;
  }

  // Rows of numbers of all sizes: the bits are those of the definition.
  template <class T> void numbers(const std::vector<int64_t>& n, float unit, int64_t M) const {
    CHECK(levels.fit);
    std::mt19937 random(unsigned(M + w.K + w.bits));
    std::vector<float> x(M * w.K), bias(w.N);
    for (float& v : x) {
      T t;
      from_float(std::ldexp(float(random()) / 2147483648.0f - 1, int(random() % 6) - 3), &t);
      v = qk::to_float(t);
    }
    for (float& v : bias) v = float(int(random() % 9) - 4);
    for (int64_t k = 0; k < std::min<int64_t>(w.K, 128); k++) x[k] = 0;  // a segment of nothing
    rows<T>(n, unit, x, M % 2 ? bias.data() : nullptr);
  }

  // The same of rows whose lower digits are all -128, or all 127.
  template <class T> void largest(const std::vector<int64_t>& n, float unit) const {
    for (const float v : {kind<T> ? -1.0f : -float(0x808080) * 0x1p-23f, kind<T> ? 127.0f / 128 : float(0x7f7f7f) * 0x1p-23f}) {
      std::vector<float> x(3 * w.K, v);
      for (int64_t m = 0; m < 3; m++)
        for (int64_t k = 0; k < w.K; k += 128) x[m * w.K + k] = 64;  // by which a segment is scaled
      rows<T>(n, unit, x, nullptr);
    }
  }

  template <class T> void rows(const std::vector<int64_t>& n, float unit, const std::vector<float>& x, const float* b) const {
    const int64_t M = int64_t(x.size()) / w.K;
    const auto check = [&](const std::vector<float>& y, int64_t m, int64_t at) {
      const std::vector<float> want = defined(w, n, unit, x.data() + m * w.K, b, kind<T> ? 21 : 29);
      for (int64_t i = 0; i < w.N; i++) {
        T t;
        from_float(want[i], &t);
        CHECK(bits_of(qk::to_float(t)) == bits_of(y[at * w.N + i]));
      }
    };
    if (levels.affine && w.bits > 1)
      for (const Way& way : ways(kind<T> ? 3 : 4)) {
        for (int64_t m = 0; m < M; m++) check(product<T>(x.data() + m * w.K, 1, b, way), m, 0);
        if (!way.turned) continue;
        const std::vector<float> y = product<T>(x.data(), M, b, way);
        for (int64_t m = 0; m < M; m++) check(y, m, m);
      }
#ifdef QK_TILES_IN_SOFTWARE
    const std::vector<float> y = product<T>(x.data(), M, b);
    for (int64_t m = 0; m < M; m++) check(y, m, m);
#endif
  }
};

// Levels unit * (base + factor * code).
void affine(int bits, int64_t N, int64_t K, int64_t group, int64_t base, int64_t factor, float unit) {
  Weight w(bits, N, K, group);
  w.fill_padding();
  std::vector<int64_t> n;
  for (int64_t c = 0; c < w.levels.size; c++) n.push_back(base + factor * c), w.levels[c] = float(n[c]) * unit;
  const Given given(w);
  CHECK(given.levels.affine && given.levels.base == base && given.levels.factor == factor && given.levels.unit == unit);
  given.numbers<float>(n, unit, 1 + K % 5);
  given.numbers<half>(n, unit, 1 + K % 4);
  given.numbers<bfloat>(n, unit, 7 + K % 2);
}

// The largest sums of bytes.
void largest(int bits) {
  Weight w(bits, 20, 300, 300);
  std::vector<int64_t> n;
  for (int64_t c = 0; c < w.levels.size; c++) n.push_back(c), w.levels[c] = float(c);
  w.fill(int(w.levels.size) - 1);
  const Given given(w);
  given.largest<float>(n, 1), given.largest<half>(n, 1), given.largest<bfloat>(n, 1);
}

// Levels of any kind, -127 to 127 units.
void by_table(int bits, int64_t N, int64_t K, int64_t group, float unit) {
  Weight w(bits, N, K, group);
  w.fill_padding();
  std::vector<int64_t> n;
  for (int64_t c = 0; c < w.levels.size; c++) n.push_back(c == 1 ? -127 : c * c % 100 - 40), w.levels[c] = float(n[c]) * unit;
  const Given given(w);
  CHECK(!given.levels.affine && given.levels.unit == unit);
  given.numbers<float>(n, unit, 5);
  given.numbers<bfloat>(n, unit, 1);
}

void which_levels_fit() {
  const auto fit = [](std::vector<float> l, int bits) { return IntegerLevels(l.data(), int(l.size()), bits).fit; };
  CHECK(fit({0, 0, 0, 0}, 2) && fit({5}, 1) && fit({0x1p-149f, 0x1.8p-148f}, 1) && fit({0x1p127f, -0x1p127f}, 1));
  CHECK(fit({-127, 0, 1, 64}, 2) && !fit({-128, 0, 1, 64}, 2) && !fit({127, 0, 1, 128}, 2));
  CHECK(fit({0, 85, 170, 255}, 2) && !fit({0.1f, 0.3f, 0.4f, 0.9f}, 2) && !fit({1, INFINITY}, 1) && !fit({NAN, 1}, 1));
  CHECK(!fit({0x1p-100f, 0x1p100f, 0, 0}, 2) && fit({1, 255}, 1) && fit({-255, 0}, 1) && !fit({1, 256}, 1) && !fit({-1, -256}, 1));
  std::vector<float> all(256);
  for (int c = 0; c < 256; c++) all[c] = float(2 * c - 255) * 0.25f;
  CHECK(fit(all, 8));
  all[7] += 0.25f;
  CHECK(!fit(all, 8));
}

// low, high: the smallest and the largest power of two whose steps, times the unit of the levels, are within bounds.
void which_rows_fit(float unit, float low, float high) {
  const Weight w(4, 20, 200, 200);
  for (int c = 0; c < 16; c++) w.levels[c] = float(c - 8) * unit;
  const Given given(w);
  CHECK(given.levels.unit == unit);
  std::vector<float> x(12 * 200, 1.0f);
  x[0 * 200 + 199] = NAN, x[1 * 200] = -INFINITY, x[2 * 200 + 5] = 1e-44f;
  for (int k = 128; k < 200; k++) {
    x[3 * 200 + k] = low, x[4 * 200 + k] = low / 2, x[6 * 200 + k] = high, x[7 * 200 + k] = 0;
    x[5 * 200 + k] = high * 2;  // or infinite
  }
  for (int k = 128; k < 200; k++) {  // 36 of 72 or 35 are not far below the largest; zeros do not count
    const auto size = [](int near, int k) { return k < 128 + near ? 0x1p-7f : k < 199 ? 0x1.fep-8f : -1.0f; };
    x[9 * 200 + k] = size(35, k), x[10 * 200 + k] = size(34, k), x[11 * 200 + k] = k < 150 ? 0 : size(50, k);
  }
  std::vector<char> fits;
  const char want[] = {0, 0, 1, 1, 0, 0, 1, 1, 1, 1, 0, 1};
#ifdef QK_TILES_IN_SOFTWARE
  const std::vector<float> y = given.product<float>(x.data(), 12, nullptr, {}, &fits);
  for (int m = 0; m < 12; m++) {
    CHECK(fits[m] == want[m]);
    if (!want[m]) for (int n = 0; n < 20; n++) CHECK(y[m * 20 + n] == 0);
  }
#else
  for (const auto& way : given.ways(4)) {
    for (int m = 0; m < 12; m++) {
      given.product<float>(x.data() + m * 200, 1, nullptr, way, &fits);
      CHECK(fits[0] == want[m]);
    }
    if (!way.turned) continue;
    const std::vector<float> y = given.product<float>(x.data(), 12, nullptr, way, &fits);
    for (int m = 0; m < 12; m++) {
      CHECK(fits[m] == want[m]);
      if (!want[m]) for (int n = 0; n < 20; n++) CHECK(y[m * 20 + n] == 0);
    }
  }
#endif
}

}  // namespace

int main() {
  for (int bits : {1, 2, 3, 4, 8}) {
    const int64_t count = int64_t(1) << bits;
    for (int64_t K : {1, 31, 33, 70, 129, 300}) affine(bits, K % 40 + 1, K, K, -count / 2, 1, 1);
    for (int64_t group : {32, 64, 96, 128, 192, 256}) affine(bits, 35, 3 * group, group, 1 - count, 2, 0.125f);
    affine(bits, 50, 4 * 96, 96, 0, 1, 0x1.8p-20f);
    largest(bits);
    affine(bits, 17, 640, 640, bits == 8 ? 0 : -1, -1, 3);
    if (bits == 8) continue;
    for (int64_t group : {32, 64, 160, 256}) if (bits > 1) by_table(bits, 35, 3 * group, group, 0.75f);
  }
  which_levels_fit();
  which_rows_fit(1, 0x1p-97f, 0x1p109f);
  which_rows_fit(0x1p-30f, 0x1p-67f, 0x1p127f);
  which_rows_fit(0x1p20f, 0x1p-97f, 0x1p89f);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
