// Integer activations times a packed weight. The Python side has checked shapes and devices.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <vector>
#include "../common/export.h"
#include "../common/scratch.h"
#include "../common/tensors.h"
#include "../common/threads.h"
#include "../daq/daq.h"
#include "../lsq/lsq.h"
#include "../lut_linear/lut_linear_tensors.h"
#include "lut_linear_int_kernels.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kTileRows = 5;  // of x, from where matrix tiles are faster

// What multiplies, and how it takes x, chosen at once.
struct Kernel {
  decltype(qk::LutInt::linear) linear;
  int64_t most;
  int depth;
  int64_t (*scratch)(const qk::ByteRows&);
  explicit Kernel(const qk::LutInt& rows) : linear(rows.linear), most(rows.most), depth(1), scratch(qk::LutInt::scratch) {}
  Kernel(const qk::LutIntAmx& tiles, int depth) : linear(tiles.linear), most(16), depth(depth), scratch(qk::LutIntAmx::scratch) {}
};
Kernel kernel_for(int64_t M, int64_t K, int64_t group) {
#ifdef __x86_64__
  const qk::Isa now = qk::isa();
  if (now == qk::kAmx && M >= kTileRows) return {qk::lut_linear_int_amx_avx512, group % 64 == 0 || group == K ? 2 : 1};
  if (now >= qk::kAvx512) return Kernel(qk::has_vnni() ? qk::lut_linear_int_avx512 : qk::lut_linear_int_without_vnni_avx512);
  if (now >= qk::kAvx2) return Kernel(qk::lut_linear_int_avx2);
#endif
  return Kernel(qk::lut_linear_int_scalar);
}

// Bytes 0, 2, 4 and 6, then 1, 3, 5 and 7: the columns of a quad of up to 4 bits, then of the next one.
uint64_t evens_first(uint64_t x) {
  const auto evens = [](uint64_t v) {
    v &= 0x00ff00ff00ff00ffull;
    v = (v | v >> 8) & 0x0000ffff0000ffffull;
    return (v | v >> 16) & 0xffffffffull;
  };
  return evens(x) | evens(x >> 8) << 32;
}

// The sum of eight bytes.
int32_t sum_of(uint64_t x, bool is_signed) {
  if (is_signed) x ^= 0x8080808080808080ull;  // 128 more
  constexpr uint64_t kEven = 0x00ff00ff00ff00ffull;
  return int32_t(((x & kEven) + (x >> 8 & kEven)) * 0x0001000100010001ull >> 48) - (is_signed ? 1024 : 0);
}

// x [M, K] -> bytes, in order, and what c times their sums is.
void arrange(const uint8_t* x, const qk::ByteRows& rows, const qk::ByteLevels& levels, int bits) {
  memset(rows.data, 0, rows.bytes());
  const int64_t tile = rows.each * rows.stride();
  torch::stable::parallel_for(0, rows.M, std::max<int64_t>(1, 65536 / rows.K), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; m++) {
      const int64_t i = m / rows.each, row = m % rows.each;
      uint8_t* to = rows.data + i * rows.units * tile + row * rows.stride();
      for (int64_t s = 0; s < rows.segments; s++) {
        const int64_t group = s / rows.of_group, first = group * rows.group + s % rows.of_group * qk::ByteRows::kSegment;
        const int64_t last = std::min(first + qk::ByteRows::kSegment, (group + 1) * rows.group);
        int32_t sum = 0;
        for (int64_t k = first; k < last; k += 8) {
          uint64_t eight = 0;
          if (last - k >= 8) memcpy(&eight, x + m * rows.K + k, 8);
          else memcpy(&eight, x + m * rows.K + k, last - k);
          sum += sum_of(eight, levels.x_signed);
          if (bits < 8) eight = evens_first(eight);
          memcpy(to + k / rows.stride() * tile + k % rows.stride(), &eight, 8);
        }
        rows.more_of(i, s)[row] = int32_t(uint32_t(levels.c) * uint32_t(sum));
      }
    }
  });
}

// What rounds a float x to integers: those from qmin to qmax, in steps of `by` between bounds (daq), or in units of step (lsq).
struct Grid {
  int64_t qmin, qmax, by;
  const float *step, *lower, *upper;  // [P]; the bounds null for lsq; with bounds step is NaN where the scale is not positive
};

const float* floats(const Tensor& t, int64_t P, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float && t.is_contiguous() && t.numel() == P, name, " must be float32 [P=", P, "]");
  qk::check_memory(t, name);
  return static_cast<const float*>(t.data_ptr());
}

// x [M, k] as bytes: itself, or of floats the grid's integers, of which `each` rows share parameters. steps [M]: of its rows, times
// unit; NaN where a step without bounds is not positive, or there is a NaN in the row.
Tensor integers(const Tensor& x, const Grid& grid, int64_t each, float unit, std::vector<float>& steps) {
  const int64_t M = x.size(0), k = x.size(1), qmin = grid.qmin, qmax = grid.qmax;
  steps.resize(M);
  for (int64_t m = 0; m < M; m++) steps[m] = grid.lower || grid.step[m / each] > 0 ? grid.step[m / each] * unit : NAN;
  if (x.scalar_type() == ScalarType::Char || x.scalar_type() == ScalarType::Byte) return x;
  STD_TORCH_CHECK(qmin < qmax && qmin >= -128 && qmax <= (qmin < 0 ? 127 : 255) && grid.by > 0 && (qmax - qmin) % grid.by == 0,
                  "qmin and qmax must fit a byte and by divide their distance, got ", qmin, ", ", qmax, " and ", grid.by);
  const int dtype = qk::dtype_index(x);
  const Tensor bytes = torch::stable::new_empty(x, {M, k}, qmin < 0 ? ScalarType::Char : ScalarType::Byte);
  uint8_t* to = static_cast<uint8_t*>(bytes.data_ptr());
  const void* from = x.data_ptr();
  std::vector<char> numbers(M);
  const auto run = [&](auto kernel, const auto& args, const float* const* params) {
    torch::stable::parallel_for(0, M, std::max<int64_t>(1, 16384 / k), [&](int64_t begin, int64_t end) {
      kernel(args, from, dtype, begin, end, k, each, params, to, numbers.data());
    });
  };
  const qk::LutIntQuantize& kernels = qk::lut_linear_int_quantize_kernels();
  if (grid.lower) {
    const float n = float((qmax - qmin) / grid.by), *params[] = {grid.lower, grid.upper, grid.step};
    run(kernels.daq, qk::DaqArgs{n, 1.0f / n, float(grid.by), float(-qmin), 0, 0}, params);
  } else {
    const float* params[] = {grid.step};
    run(kernels.lsq, qk::LsqArgs{float(qmin), float(qmax)}, params);
  }
  for (int64_t m = 0; m < M; m++)
    if (!numbers[m]) steps[m] = NAN;
  return bytes;
}

// even, odd: whole numbers, float32 [n_levels]; a level is unit * (a * even + b * odd). step, lower, upper: float32 [P], P dividing the
// rows of x.
Tensor lut_linear_split(Tensor x, Tensor step, std::optional<Tensor> lower, std::optional<Tensor> upper, int64_t qmin, int64_t qmax,
                        int64_t by, Tensor codes, Tensor even, Tensor odd, int64_t a, int64_t b, double unit, Tensor scale,
                        std::optional<Tensor> bias, int64_t bits, int64_t group_size, int64_t n, int64_t k) {
  const qk::PackedTensors tensors(codes, even, scale, bits, group_size, n, k);
  const qk::Packed& w = tensors.packed;
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == k && x.is_contiguous(), "x must be [M, k=", k, "] and contiguous");
  qk::check_memory(x, "x");
  const int64_t M = x.size(0), P = step.numel();
  STD_TORCH_CHECK(P > 0 && M % P == 0, "step must be float32 [P], P dividing M=", M, ", got ", P, " values");
  STD_TORCH_CHECK(lower.has_value() == upper.has_value(), "lower and upper must be given together");
  const Grid grid{qmin, qmax, by, floats(step, P, "step"), lower.has_value() ? floats(*lower, P, "lower") : nullptr,
                  upper.has_value() ? floats(*upper, P, "upper") : nullptr};
  STD_TORCH_CHECK(odd.scalar_type() == ScalarType::Float && odd.is_contiguous() && odd.numel() == even.numel() && odd.numel() > 0,
                  "odd must be like even, float32 and contiguous");
  qk::check_memory(odd, "odd");
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == n, "bias must have n=", n, " values");
  std::optional<Tensor> wide_bias;
  if (bias.has_value()) qk::check_memory(*bias, "bias"), wide_bias = qk::float_tensor(*bias);
  const float* add = wide_bias.has_value() ? static_cast<const float*>(wide_bias->data_ptr()) : nullptr;
  if (M == 0) return torch::stable::new_empty(step, {0, n});
  std::vector<float> steps;
  x = integers(x, grid, M / P, float(unit), steps);
  const qk::ByteLevels levels(w.levels, static_cast<const float*>(odd.data_ptr()), tensors.count, int32_t(a), int32_t(b), w.bits,
                              x.scalar_type() == ScalarType::Char);
  STD_TORCH_CHECK(levels.fit, "even and odd must be whole and lie in [-16, 16], at most 32, or levels be evenly spaced and lie in [-255, 255]");
  Tensor y = torch::stable::new_empty(step, {M, n});
  const Kernel kernel = kernel_for(M, k, group_size);
  const int64_t stripes = (n + qk::kStripe - 1) / qk::kStripe;
  static thread_local std::vector<uint8_t> memory;
  const auto part = [&](int64_t m, int64_t rows) { return qk::ByteRows{rows, k, group_size, kernel.most, kernel.depth, steps.data() + m}; };
  for (int64_t m = 0, held = part(0, M).held(); m < M; m += held) {
    qk::ByteRows rows = part(m, std::min(held, M - m));
    rows.place(qk::scratch(memory, rows.room()));
    arrange(static_cast<const uint8_t*>(x.data_ptr()) + m * k, rows, levels, w.bits);
    qk::balanced((stripes + 1) / 2, std::max<int64_t>(1, 4096 / (k * rows.M)), [&] {
      static thread_local std::vector<uint8_t> own;
      uint8_t* const scratch = qk::scratch(own, kernel.scratch(rows));
      return [&, scratch](int64_t begin, int64_t end) {
        kernel.linear(w, levels, begin * 2, std::min(end * 2, stripes), rows, add, static_cast<float*>(y.data_ptr()) + m * n, scratch);
      };
    });
  }
  return y;
}

// Whose kernels run; amx: from kTileRows rows on; avx512vnni: with VNNI.
std::string lut_linear_int_isa() {
  const qk::Isa now = qk::isa();
  if (now == qk::kAmx) return "amx";
  if (now >= qk::kAvx512) return qk::has_vnni() ? "avx512vnni" : "avx512";
  return now >= qk::kAvx2 ? "avx2" : "scalar";
}

QK_EXPORT(cpu, lut_linear_int_isa, "() -> str")
QK_EXPORT(cpu, lut_linear_split,
          "(Tensor x, Tensor step, Tensor? lower, Tensor? upper, int qmin, int qmax, int by, Tensor codes, Tensor even, Tensor odd, int a, "
          "int b, float unit, Tensor scale, Tensor? bias, int bits, int group_size, int n, int k) -> Tensor")

}  // namespace
