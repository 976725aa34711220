// x times a packed weight, and the packed weight as floats. The Python side has checked shapes and devices.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <vector>
#include "../common/bits.h"
#include "../common/export.h"
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
    const float base = levels[0], step = levels[1] - levels[0];
    packed.uniform = bits == 8;
    for (int c = 0; c < count; c++) packed.uniform &= std::fma(float(c), step, base) == levels[c];
    packed.base = base, packed.step = step;
  }
  Weight(const Weight&) = delete;  // packed points into it
  bool in_bfloat16() const {
    return std::all_of(levels.begin(), levels.end(), [](float l) {
      return (qk::bits_of(l) & 0xffff) == 0 && (l == 0 || std::isnormal(l));
    });
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

Tensor lut_linear(Tensor x, Tensor codes, Tensor levels, Tensor scale, std::optional<Tensor> bias, int64_t bits,
                  int64_t group_size, int64_t n, int64_t k) {
  const Weight w(codes, levels, scale, bits, group_size, n, k);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == k, "x must be [M, k=", k, "]");
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == n, "bias must have n=", n, " values");
  if (x.size(0) == 0) return torch::stable::new_empty(x, {0, n});
  std::optional<Tensor> wide_bias;
  if (bias.has_value()) wide_bias = torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
  const float* b = wide_bias.has_value() ? static_cast<const float*>(wide_bias->data_ptr()) : nullptr;
  Tensor y = torch::stable::new_empty(levels, {x.size(0), n});
  float* to = static_cast<float*>(y.data_ptr());
  const auto over_stripes = [&](int64_t M, auto body) {
    constexpr int64_t kUnit = 4;  // stripes that a kernel may take at a time
    torch::stable::parallel_for(0, (stripes(n) + kUnit - 1) / kUnit, std::max<int64_t>(1, 2048 / (k * M)),
                                [&](int64_t begin, int64_t end) { body(begin * kUnit, std::min(end * kUnit, stripes(n))); });
  };
  if (const auto pairs = qk::lut_pairs_kernels().linear; pairs && qk::isa() == qk::kAvx512Bf16 && bits <= 4 &&
      x.scalar_type() == ScalarType::BFloat16 && x.size(0) <= qk::LutPairs::kRows && w.in_bfloat16()) {
    const std::vector<uint32_t> columns = in_pairs(torch::stable::contiguous(x));
    over_stripes(x.size(0), [&](int64_t begin, int64_t end) { pairs(w.packed, begin, end, columns.data(), x.size(0), b, to); });
    return torch::stable::to(y, x.scalar_type());
  }
  const qk::LutKernels& kernels = qk::lut_kernels();
  const int64_t M = x.size(0), tiles = (M + kernels.tile - 1) / kernels.tile, T = (M + tiles - 1) / tiles;
  const Tensor wide = torch::stable::contiguous(torch::stable::to(x, ScalarType::Float));
  const float* rows = static_cast<const float*>(wide.data_ptr());
  std::vector<float> tiled;
  if (M > 1 || k % 32 != 0) {
    tiled = in_tiles(rows, M, k, T);
    rows = tiled.data();
  }
  over_stripes(M, [&](int64_t begin, int64_t end) {
    std::vector<float> sums(tiles * T * kernels.pair * qk::kStripe);
    kernels.linear(w.packed, begin, end, rows, M, T, b, to, sums.data());
  });
  return torch::stable::to(y, x.scalar_type());
}

QK_EXPORT(cpu, lut_dequantize, "(Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, int n, int k) -> Tensor")
QK_EXPORT(cpu, lut_linear,
          "(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, int n, int k) -> Tensor")

}  // namespace
