// x times a packed weight, and the packed weight as floats. The Python side has checked shapes and devices.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <vector>
#include "../common/bits.h"
#include "../common/export.h"
#include "../common/scratch.h"
#include "../common/tensors.h"
#include "../common/threads.h"
#include "lut_linear_kernels.h"
#include "lut_linear_tensors.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Weight : qk::PackedTensors {
  std::array<float, 256> levels{};
  Weight(const Tensor& codes, const Tensor& table, const Tensor& scales, int64_t bits, int64_t group, int64_t n, int64_t k)
      : PackedTensors(codes, table, scales, bits, group, n, k) {
    std::copy_n(packed.levels, count, levels.begin());
    packed.levels = levels.data();
    packed.narrow = std::all_of(levels.begin(), levels.end(), [](float l) { return (qk::bits_of(l) & 0xffff) == 0; });
    const float base = levels[0], step = levels[1] - levels[0];
    packed.uniform = bits == 8;
    for (int c = 0; c < count; c++) packed.uniform &= std::fma(float(c), step, base) == levels[c];
    packed.base = base, packed.step = step;
  }
  Weight(const Weight&) = delete;  // packed points into it
  bool is_finite() const {
    return std::all_of(levels.begin(), levels.begin() + count, [](float l) { return std::isfinite(l); });
  }
  bool in_bfloat16() const {
    return packed.narrow && std::all_of(levels.begin(), levels.end(), [](float l) { return l == 0 || std::isnormal(l); });
  }
};

int64_t stripes(int64_t n) { return (n + qk::kStripe - 1) / qk::kStripe; }

Tensor lut_dequantize(Tensor codes, Tensor levels, Tensor scale, int64_t bits, int64_t group_size, int64_t n, int64_t k) {
  const Weight w(codes, levels, scale, bits, group_size, n, k);
  Tensor out = torch::stable::new_empty(levels, {n, k});
  float* to = static_cast<float*>(out.data_ptr());
  const auto kernel = qk::lut_kernels().dequantize;
  torch::stable::parallel_for(0, stripes(n), std::max<int64_t>(1, 4096 / k), [&](int64_t begin, int64_t end) {
    kernel(w.packed, begin, end, to);
  });
  return out;
}

// x [M, k] -> [M / T rounded up][k rounded up to 32][T], filled up with zeros.
std::vector<float> in_tiles(const float* x, int64_t M, int64_t k, int64_t T) {
  const int64_t tiles = (M + T - 1) / T, padded = (k + 31) / 32 * 32;
  std::vector<float> out(tiles * padded * T);
  torch::stable::parallel_for(0, padded / 32, std::max<int64_t>(1, 1024 / M), [&](int64_t begin, int64_t end) {
    for (int64_t m = 0; m < M; m++) {
      float* to = out.data() + m / T * padded * T + m % T;
      for (int64_t i = begin * 32; i < std::min(end * 32, k); i++) to[i * T] = x[m * k + i];
    }
  });
  return out;
}

// x [M, k] bfloat16 -> as LutPairs takes it.
std::vector<uint32_t> in_pairs(const Tensor& x) {
  const int64_t M = x.size(0), k = x.size(1);
  const uint16_t* from = static_cast<const uint16_t*>(x.data_ptr());
  std::vector<uint32_t> out((k + 31) / 32 * 16 * M);
  for (int64_t m = 0; m < M; m++)
    for (int64_t i = 0; i < k; i++) out[(i / 8 * 4 + i % 4) * M + m] |= uint32_t(from[m * k + i]) << (i % 8 < 4 ? 0 : 16);
  return out;
}

// start(), once in each thread, gives body(begin, end): stripes, for M rows of x.
template <class Start> void over_stripes(const Weight& w, int64_t M, Start start) {
  constexpr int64_t kUnit = 4;  // stripes that a kernel may take at a time
  const int64_t all = stripes(w.packed.N);
  qk::balanced((all + kUnit - 1) / kUnit, std::max<int64_t>(1, 2048 / (w.packed.K * M)), [&] {
    return [all, body = start()](int64_t begin, int64_t end) { body(begin * kUnit, std::min(end * kUnit, all)); };
  });
}

// y [n] = x w^T + bias for one row of x. Each thread spreads it, which takes less than to read what another core has written.
void alone(const Weight& w, const float* x, const float* bias, qk::Output y) {
  const qk::LutAlone& kernels = qk::lut_alone_kernels();
  int64_t floats = 0, numbers = 0;
  kernels.room(w.packed, &floats, &numbers);
  over_stripes(w, 1, [&] {
    static thread_local std::vector<uint8_t> memory;
    float* to = reinterpret_cast<float*>(qk::scratch(memory, (floats + numbers) * 4));
    int32_t* groups = reinterpret_cast<int32_t*>(to + floats);
    kernels.spread(w.packed, x, to, groups);
    return [&, to, groups](int64_t begin, int64_t end) { kernels.linear(w.packed, begin, end, to, groups, bias, y); };
  });
}
void alone(const Weight& w, const Tensor& x, const float* bias, qk::Output y) {
  if (y.dtype == 0) return alone(w, static_cast<const float*>(x.data_ptr()), bias, y);
  std::vector<float> wide(w.packed.K);
  const auto widen = [&](auto* from) { std::transform(from, from + w.packed.K, wide.begin(), [](auto v) { return qk::to_float(v); }); };
  y.dtype == 1 ? widen(static_cast<const qk::half*>(x.data_ptr())) : widen(static_cast<const qk::bfloat*>(x.data_ptr()));
  alone(w, wide.data(), bias, y);
}

// y [M, n] = x w^T + bias, all float32.
void by_rows(const Weight& w, const float* x, int64_t M, const float* bias, float* y) {
  const qk::LutKernels& kernels = qk::lut_kernels();
  if (M == 1) {  // twice: a row alone is another kernel's
    std::vector<float> both(2 * w.packed.K), out(2 * w.packed.N);
    std::copy_n(x, w.packed.K, std::copy_n(x, w.packed.K, both.data()));
    by_rows(w, both.data(), 2, bias, out.data());
    std::copy_n(out.data(), w.packed.N, y);
    return;
  }
  const int64_t tiles = (M + kernels.tile - 1) / kernels.tile, T = (M + tiles - 1) / tiles;
  const std::vector<float> tiled = in_tiles(x, M, w.packed.K, T);
  over_stripes(w, M, [&] {
    static thread_local std::vector<uint8_t> memory;
    float* const sums = reinterpret_cast<float*>(qk::scratch(memory, tiles * T * kernels.pair * qk::kStripe * 4));
    return [&, sums](int64_t begin, int64_t end) { kernels.linear(w.packed, begin, end, tiled.data(), M, T, bias, y, sums); };
  });
}

// Rows of x and y, and those of them that are left for other kernels.
struct Rows {
  const Tensor& x;
  Tensor& y;
  const int64_t M = x.size(0), bytes = x.element_size();
  const int dtype = qk::dtype_index(x);
  std::vector<int64_t> left = {};
  static uint8_t* at(const Tensor& t, int64_t m) { return static_cast<uint8_t*>(t.data_ptr()) + m * t.size(1) * t.element_size(); }
  qk::Output to(int64_t m) const { return {at(y, m), dtype}; }
  void note(const std::vector<char>& fits, int64_t first) {
    for (size_t i = 0; i < fits.size(); i++)
      if (!fits[i]) left.push_back(first + int64_t(i));
  }
  void finish(const Weight& w, const float* bias) {
    if (left.empty()) return;
    const int64_t K = w.packed.K, N = w.packed.N;
    const Tensor wide = torch::stable::contiguous(torch::stable::to(x, ScalarType::Float));
    std::vector<float> from(left.size() * K), out(left.size() * N);
    for (size_t i = 0; i < left.size(); i++) std::copy_n(static_cast<const float*>(wide.data_ptr()) + left[i] * K, K, &from[i * K]);
    by_rows(w, from.data(), int64_t(left.size()), bias, out.data());
    const auto write = [&](auto* to) {
      for (size_t i = 0; i < left.size(); i++)
        for (int64_t n = 0; n < N; n++) qk::from_float(out[i * N + n], to + left[i] * N + n);
    };
    if (dtype == 0) write(static_cast<float*>(y.data_ptr()));
    else if (dtype == 1) write(static_cast<qk::half*>(y.data_ptr()));
    else write(static_cast<qk::bfloat*>(y.data_ptr()));
  }
};

constexpr int64_t kFewRows = 5;  // for which levels of several parts cost more to decode than tiles save; for float32 always

// As lut_linear, by the matrix tiles of the processor; false where that takes longer for `of` rows, of which these are the ones that
// are left, or where a level is not for them.
bool by_tiles(const Weight& w, const float* bias, Rows rows, int64_t of) {
  const qk::LutAmx& amx = qk::lut_amx_kernels();
  if (rows.M == 1 || !amx.linear) return false;  // null if another thread has just chosen another instruction set
  const qk::AmxLevels levels(w.levels.data(), w.count);
  if (!levels.fit || (levels.parts > 1 && (rows.dtype == 0 || of <= kFewRows))) return false;
  static thread_local std::vector<uint8_t> memory;
  const int64_t K = w.packed.K, step = qk::AmxRows{nullptr, rows.M, K, 3 - rows.dtype}.held();
  for (int64_t m = 0; m < rows.M; m += step) {
    qk::AmxRows x{nullptr, std::min(step, rows.M - m), K, 3 - rows.dtype};
    x.data = reinterpret_cast<uint16_t*>(qk::scratch(memory, x.values() * 2));
    std::vector<char> fits(x.M);
    torch::stable::parallel_for(0, x.M, std::max<int64_t>(1, 32768 / K), [&](int64_t begin, int64_t end) {
      amx.split(x, begin, end, rows.at(rows.x, m), rows.dtype, levels.least(), fits.data());
    });
    over_stripes(w, x.M, [&] {
      static thread_local std::vector<uint8_t> own;
      uint8_t* const scratch = qk::scratch(own, qk::LutAmx::scratch(x));
      return [&, scratch](int64_t begin, int64_t end) { amx.linear(w.packed, levels, begin, end, x, bias, rows.to(m), scratch); };
    });
    rows.note(fits, m);
  }
  rows.finish(w, bias);
  return true;
}

// The rows that are left, by the matrix tiles where they can be; one of them twice, for a row alone is another kernel's.
void finish_by_tiles(const Weight& w, const float* bias, Rows& rows) {
  if (rows.left.empty()) return;
  const int64_t count = std::max<int64_t>(2, rows.left.size()), K = w.packed.K * rows.bytes, N = w.packed.N * rows.bytes;
  const Tensor x = torch::stable::new_empty(rows.x, {count, w.packed.K});
  Tensor y = torch::stable::new_empty(rows.y, {count, w.packed.N});
  for (int64_t i = 0; i < count; i++) memcpy(rows.at(x, i), rows.at(rows.x, rows.left[std::min<size_t>(i, rows.left.size() - 1)]), K);
  if (!by_tiles(w, bias, {x, y}, rows.M)) return rows.finish(w, bias);
  for (size_t i = 0; i < rows.left.size(); i++) memcpy(rows.at(rows.y, rows.left[i]), rows.at(y, i), N);
}

// Rows of x up to which integers are faster than the other kernels: of 16 bits, than tiles of bfloat16.
int64_t integer_rows(const Weight& w, int dtype, bool tiles) {
  return !tiles ? 1 : dtype == 0 ? INT64_MAX : w.packed.bits == 8 ? 8 : 4;
}

// As lut_linear in integers; false where that takes longer, or where levels or, of one, the row are not for them.
bool by_integers(const Weight& w, const float* bias, Rows rows) {
  auto [kernels, tiles] = qk::integers_here();
  if (rows.M > integer_rows(w, rows.dtype, tiles) || (rows.M == 1 && w.packed.bits == 1)) return false;
  const qk::IntegerLevels levels(w.levels.data(), w.count, w.packed.bits);
  if (!levels.fit || (!levels.affine && (!tiles || (rows.M == 1 && w.packed.bits == 2)))) return false;  // tables of nibbles are faster
  if (rows.M == 1 && levels.affine && w.packed.bits <= 4) tiles = nullptr;  // they would be nearly empty
  static thread_local std::vector<uint8_t> memory;
  const int digits = rows.dtype == 0 ? 4 : 3;
  const auto part = [&](int64_t M) {
    return qk::IntegerRows{nullptr, nullptr, M, w.packed.K, w.packed.group, w.packed.bits, digits, tiles != nullptr};
  };
  for (int64_t m = 0, step = part(rows.M).held(); m < rows.M; m += step) {
    qk::IntegerRows x = part(std::min(step, rows.M - m));
    x.place(qk::scratch(memory, x.room()));
    std::vector<char> fits(x.M);
    torch::stable::parallel_for(0, x.M, std::max<int64_t>(1, 32768 / x.K), [&](int64_t begin, int64_t end) {
      kernels->split(x, levels, begin, end, rows.at(rows.x, m), rows.dtype, fits.data());
    });
    if (rows.M == 1 && !fits[0]) return false;
    rows.note(fits, m);
    if (std::none_of(fits.begin(), fits.end(), [](char fit) { return fit; })) continue;
    over_stripes(w, x.M, [&] {
      static thread_local std::vector<uint8_t> own;
      uint8_t* const scratch = tiles ? qk::scratch(own, qk::LutIntegersAmx::scratch(x)) : nullptr;
      return [&, scratch](int64_t begin, int64_t end) {
        if (scratch) tiles(w.packed, levels, begin, end, x, bias, rows.to(m), scratch);
        else kernels->alone(w.packed, levels, begin, end, x, bias, rows.to(m));
      };
    });
  }
  finish_by_tiles(w, bias, rows);
  return true;
}

Tensor lut_linear(Tensor x, Tensor codes, Tensor levels, Tensor scale, std::optional<Tensor> bias, int64_t bits,
                  int64_t group_size, int64_t n, int64_t k) {
  const Weight w(codes, levels, scale, bits, group_size, n, k);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == k, "x must be [M, k=", k, "]");
  qk::dtype_index(x);
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == n, "bias must have n=", n, " values");
  const int64_t M = x.size(0);
  if (M == 0) return torch::stable::new_empty(x, {0, n});
  std::optional<Tensor> wide_bias;
  if (bias.has_value()) wide_bias = qk::float_tensor(*bias);
  const float* b = wide_bias.has_value() ? static_cast<const float*>(wide_bias->data_ptr()) : nullptr;
  if (!x.is_contiguous()) x = torch::stable::contiguous(x);
  if (M == 1 || qk::isa() == qk::kAmx) {
    Tensor y = qk::empty_on_cpu(x, M, n);
    if (by_integers(w, b, {x, y})) return y;
    if (M == 1 && w.is_finite()) {  // else what pads its wider tiles would be NaN
      alone(w, x, b, {y.data_ptr(), qk::dtype_index(x)});
      return y;
    }
    if (qk::isa() == qk::kAmx && by_tiles(w, b, {x, y}, M)) return y;
  }
  Tensor y = qk::empty_on_cpu(levels, M, n);
  float* to = static_cast<float*>(y.data_ptr());
  if (const auto pairs = qk::lut_pairs_kernels().linear; pairs && qk::isa() == qk::kAvx512Bf16 && bits <= 4 &&
      x.scalar_type() == ScalarType::BFloat16 && M <= qk::LutPairs::kRows && w.in_bfloat16()) {
    const std::vector<uint32_t> columns = in_pairs(x);
    over_stripes(w, M, [&] { return [&](int64_t begin, int64_t end) { pairs(w.packed, begin, end, columns.data(), M, b, to); }; });
  } else {
    const Tensor wide = qk::float_tensor(x);
    by_rows(w, static_cast<const float*>(wide.data_ptr()), M, b, to);
  }
  return x.scalar_type() == ScalarType::Float ? y : torch::stable::to(y, x.scalar_type());
}

QK_EXPORT(cpu, lut_dequantize, "(Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, int n, int k) -> Tensor")
QK_EXPORT(cpu, lut_linear,
          "(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, int n, int k) -> Tensor")

}  // namespace
