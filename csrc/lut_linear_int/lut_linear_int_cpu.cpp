// Integer activations times a packed weight on powers of sqrt(2). The Python side has checked shapes and devices.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <optional>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <type_traits>
#include <utility>
#include <vector>
#include "../common/export.h"
#include "../common/scratch.h"
#include "../common/tensors.h"
#include "../lsq/lsq.h"
#include "lut_linear_int_kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

bool has_vnni() {
#ifdef __x86_64__
  return qk::isa() >= qk::kAvx512 && qk::has_vnni() && qk::lut_linear_int_vnni_avx512.linear;
#else
  return false;
#endif
}

const qk::PostKernels& kernels(bool vnni) {
#ifdef __x86_64__
  if (vnni && has_vnni()) return qk::lut_linear_int_vnni_avx512;
#endif
  return qk::lut_linear_int_kernels();
}

constexpr int64_t kTileRows = 9;  // of x, from where matrix tiles are faster

// The kernel for matrix tiles, if it can run this.
auto by_tiles(const qk::PostWeight& w, int64_t M) {
#ifdef __x86_64__
  if (qk::isa() == qk::kAmx && M >= kTileRows && w.bits == 4 && w.group % 64 == 0) return qk::lut_linear_int_amx_kernels().linear;
#endif
  return decltype(qk::PostAmx::linear)(nullptr);
}

// Bytes 0, 2, 4 and 6, then 1, 3, 5 and 7: the columns of a word's low nibbles, then of its high ones (post_column).
uint64_t evens_first(uint64_t x) {
  const auto evens = [](uint64_t v) {
    v &= 0x00ff00ff00ff00ffull;
    v = (v | v >> 8) & 0x0000ffff0000ffffull;
    return (v | v >> 16) & 0xffffffffull;
  };
  return evens(x) | evens(x >> 8) << 32;
}

// x [M, K] -> as PostKernels takes it, rows of one block after another, or as PostAmx does, `each` rows a tile.
std::vector<uint8_t> in_blocks(const uint8_t* x, int64_t M, const qk::PostWeight& w, int64_t each) {
  const int64_t width = each ? 64 : w.blocks() * 32, units = w.blocks() * 32 / width, tall = each ? each : 1;
  std::vector<uint8_t> out((M + tall - 1) / tall * tall * w.blocks() * 32);
  torch::stable::parallel_for(0, M, std::max<int64_t>(1, 65536 / w.K), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      uint8_t* row = &out[(m / tall * units * tall + m % tall) * width];
      for (int64_t first = 0; first < w.K; first += 8) {
        uint64_t eight = 0;
        memcpy(&eight, x + m * w.K + first, std::min<int64_t>(8, w.K - first));
        if (w.bits == 4) eight = evens_first(eight);
        memcpy(row + first / width * tall * width + first % width, &eight, 8);
      }
    }
  });
  return out;
}

// What the offset of the tables adds to the sum over each segment: [M][segments].
std::vector<int32_t> offsets(const uint8_t* x, int64_t M, const qk::PostWeight& w) {
  const int64_t segments = qk::post_segments(w), of_group = segments / w.G;
  std::vector<int32_t> out(M * segments);
  if (!w.is_signed) return out;
  const uint32_t factor = uint32_t(qk::PostKernels::kOffset) * (uint32_t(w.a) + uint32_t(w.b));
  for (int64_t m = 0; m < M; m++)
    for (int64_t s = 0; s < segments; s++) {
      const int64_t group = s / of_group, first = group * w.group + s % of_group * qk::PostKernels::kSegment;
      const int8_t* row = reinterpret_cast<const int8_t*>(x + m * w.K);
      const int32_t sum = std::accumulate(row + first, row + std::min(first + qk::PostKernels::kSegment, (group + 1) * w.group), 0);
      out[m * segments + s] = int32_t(factor * uint32_t(sum));
    }
  return out;
}

// x [M, k] as bytes: itself, or of floats lsq's integers from qmin to qmax. steps [M]: of its rows, times unit; NaN where step is
// not positive, or there is a NaN in the row.
Tensor integers(const Tensor& x, const Tensor& step, int64_t qmin, int64_t qmax, float unit, std::vector<float>& steps) {
  const int64_t M = x.size(0), k = x.size(1), each = M / step.numel();
  const float* of = static_cast<const float*>(step.data_ptr());
  steps.resize(M);
  for (int64_t m = 0; m < M; m++) steps[m] = of[m / each] > 0 ? of[m / each] * unit : NAN;
  if (x.scalar_type() == ScalarType::Char || x.scalar_type() == ScalarType::Byte) return x;
  STD_TORCH_CHECK(qmin < qmax && qmin >= -128 && qmax <= (qmin < 0 ? 127 : 255), "qmin and qmax must fit a byte, got ", qmin, " and ", qmax);
  const int dtype = qk::dtype_index(x);
  const Tensor bytes = torch::stable::new_empty(x, {M, k}, qmin < 0 ? ScalarType::Char : ScalarType::Byte);
  uint8_t* to = static_cast<uint8_t*>(bytes.data_ptr());
  const void* from = x.data_ptr();
  std::vector<char> numbers(M);
  const auto kernel = qk::lut_linear_int_quantize_kernels().quantize;
  torch::stable::parallel_for(0, M, std::max<int64_t>(1, 16384 / k), [&](int64_t begin, int64_t end) {
    kernel({float(qmin), float(qmax)}, from, dtype, begin, end, k, each, of, to, numbers.data());
  });
  for (int64_t m = 0; m < M; m++)
    if (!numbers[m]) steps[m] = NAN;
  return bytes;
}

// even, odd: int8 [n_levels]; a level is unit * (a * even + b * odd). step: float32 [P], P dividing the rows of x.
Tensor lut_linear_split(Tensor x, Tensor step, int64_t qmin, int64_t qmax, Tensor codes, Tensor even, Tensor odd, int64_t a, int64_t b,
                       double unit, Tensor scale, std::optional<Tensor> bias, int64_t bits, int64_t group_size, int64_t n, int64_t k,
                       bool vnni) {
  STD_TORCH_CHECK(bits == 4 || bits == 8, "bits must be 4 or 8, got ", bits);
  STD_TORCH_CHECK(n > 0 && k > 0 && group_size > 0 && k % group_size == 0 && (group_size % 32 == 0 || group_size == k),
                  "group_size must divide k=", k, " and be a multiple of 32, or k, got ", group_size);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == k && x.is_contiguous(), "x must be [M, k=", k, "] and contiguous");
  const int64_t M = x.size(0), stripes = (n + 15) / 16, width = 256 / bits;
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Byte && codes.is_contiguous() &&
                      codes.numel() == stripes * ((k + width - 1) / width) * 512,
                  "codes must be uint8, contiguous, and fit bits, n and k");
  STD_TORCH_CHECK(step.scalar_type() == ScalarType::Float && step.is_contiguous() && step.numel() > 0 && M % step.numel() == 0,
                  "step must be float32 [P], P dividing M=", M, ", got ", step.numel(), " values");
  const Tensor scales = torch::stable::contiguous(torch::stable::to(scale, ScalarType::Float));
  STD_TORCH_CHECK(scales.numel() == stripes * 16 * (k / group_size), "scale must fit group_size, n and k");
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == n, "bias must have n=", n, " values");
  std::optional<Tensor> wide_bias;
  if (bias.has_value()) wide_bias = torch::stable::contiguous(torch::stable::to(*bias, ScalarType::Float));
  const float* add = wide_bias.has_value() ? static_cast<const float*>(wide_bias->data_ptr()) : nullptr;

  qk::PostWeight w{};
  w.codes = static_cast<const uint8_t*>(codes.data_ptr());
  w.scale = static_cast<const float*>(scales.data_ptr());
  w.bits = int(bits), w.N = n, w.K = k, w.group = group_size, w.G = k / group_size;
  if (M == 0) return torch::stable::new_empty(step, {0, n});
  std::vector<float> all_steps;
  x = integers(x, step, qmin, qmax, float(unit), all_steps);
  w.is_signed = x.scalar_type() == ScalarType::Char;
  w.a = int32_t(a), w.b = int32_t(b);
  const int offset = w.is_signed ? qk::PostKernels::kOffset : 0;
  for (const auto& [from, to] : {std::pair{even, w.even}, std::pair{odd, w.odd}}) {
    STD_TORCH_CHECK(from.scalar_type() == ScalarType::Char && from.is_contiguous() && from.numel() <= (bits == 4 ? 16 : 32),
                    "even and odd must be int8, at most ", bits == 4 ? 16 : 32);
    std::fill_n(to, 32, int8_t(offset));
    for (int64_t c = 0; c < from.numel(); c++) {
      const int8_t level = static_cast<const int8_t*>(from.data_ptr())[c];
      STD_TORCH_CHECK(std::abs(level) <= qk::PostKernels::kOffset, "even and odd must lie in [-16, 16], got ", int(level));
      to[c] = int8_t(level + offset);
    }
  }
  Tensor y = torch::stable::new_empty(step, {M, n});
  const uint8_t* rows = static_cast<const uint8_t*>(x.data_ptr());
  float* to = static_cast<float*>(y.data_ptr());
  const float* steps = all_steps.data();
  if (const auto tiles = by_tiles(w, M); tiles && vnni) {
    const int64_t held = std::max<int64_t>(16, (1 << 20) / k / 16 * 16);  // rows of x: what an L2 cache holds
    for (int64_t m = 0; m < M; m += held) {
      const int64_t count = std::min(held, M - m);
      const std::vector<uint8_t> blocks = in_blocks(rows + m * k, count, w, qk::PostAmx::rows(count));
      torch::stable::parallel_for(0, stripes, std::max<int64_t>(1, 8192 / (k * count)), [&](int64_t begin, int64_t end) {
        static thread_local std::vector<uint8_t> memory;
        tiles(w, begin, end, blocks.data(), count, steps + m, add, to + m * n, qk::scratch(memory, qk::PostAmx::kBuffer + count * 64));
      });
    }
    return y;
  }
  const std::vector<uint8_t> blocks = in_blocks(rows, M, w, 0);
  const std::vector<int32_t> more = offsets(rows, M, w);
  const auto kernel = kernels(vnni).linear;
  torch::stable::parallel_for(0, stripes, std::max<int64_t>(1, 8192 / (k * M)), [&](int64_t begin, int64_t end) {
    kernel(w, begin, end, blocks.data(), M, more.data(), steps, add, to);
  });
  return y;
}

// Whether the kernels with the byte product instruction can run here.
bool lut_linear_int_vnni() { return has_vnni(); }

QK_EXPORT(cpu, lut_linear_split,
          "(Tensor x, Tensor step, int qmin, int qmax, Tensor codes, Tensor even, Tensor odd, int a, int b, float unit, Tensor scale, "
          "Tensor? bias, int bits, int group_size, int n, int k, bool vnni) -> Tensor")
QK_EXPORT(cpu, lut_linear_int_vnni, "() -> bool")

}  // namespace
