// x times a packed weight, and the packed weight as floats.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
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

using torch::stable::Tensor;

struct Weight {
  qk::Packed packed;
  int count;  // of levels
  std::array<float, 256> levels{};
  Weight(const qk::Packed& w, int count) : packed(w), count(count) {
    std::copy_n(w.levels, count, levels.begin());
    packed.levels = levels.data();
    packed.narrow = std::all_of(levels.begin(), levels.end(), [](float l) { return (qk::bits_of(l) & 0xffff) == 0; });
    packed.prefers_bytes = qk::is_amd();  // as timed on Zen 3
    const float base = levels[0], step = levels[1] - levels[0];
    packed.uniform = packed.bits == 8;
    for (int c = 0; c < count; c++) packed.uniform &= std::fma(float(c), step, base) == levels[c];
    packed.base = base, packed.step = step;
  }
  Weight(const Weight&) = delete;  // packed points into it
  bool is_finite() const {
    return std::all_of(levels.begin(), levels.begin() + count, [](float l) { return std::isfinite(l); });
  }
};

constexpr int64_t kUnit = 4;  // stripes that most kernels may take at a time

int64_t stripes(int64_t n) { return (n + qk::kStripe - 1) / qk::kStripe; }

Tensor lut_dequantize(Tensor codes, Tensor levels, Tensor scale, int64_t bits, int64_t group_size, int64_t n, int64_t k) {
  const qk::PackedTensors given(codes, levels, scale, bits, group_size, n, k);
  const Weight w(given.packed, given.count);
  Tensor out = torch::stable::new_empty(levels, {n, k});
  float* to = static_cast<float*>(out.data_ptr());
  const auto kernel = qk::lut_kernels_of(w.packed).dequantize;
  torch::stable::parallel_for(0, stripes(n), std::max<int64_t>(1, 4096 / k), [&](int64_t begin, int64_t end) {
    kernel(w.packed, begin, end, to);
  });
  return out;
}

// body of x's elements, as their type.
template <class Body> void typed(const void* x, int dtype, Body body) {
  if (dtype == 0) body(static_cast<const float*>(x));
  else if (dtype == 1) body(static_cast<const qk::half*>(x));
  else body(static_cast<const qk::bfloat*>(x));
}

void widen(const void* values, int dtype, int64_t count, float* to) {
  typed(values, dtype, [&](auto* from) { std::transform(from, from + count, to, [](auto v) { return qk::to_float(v); }); });
}

// x [M, k] -> [M / T rounded up][k rounded up to 32][T] float32, filled up with zeros.
std::vector<float> in_tiles(const void* x, int dtype, int64_t M, int64_t k, int64_t T) {
  const int64_t tiles = (M + T - 1) / T, padded = (k + 31) / 32 * 32;
  std::vector<float> out(tiles * padded * T);
  typed(x, dtype, [&](auto* from) {
    torch::stable::parallel_for(0, padded / 32, std::max<int64_t>(1, 1024 / M), [&](int64_t begin, int64_t end) {
      for (int64_t m = 0; m < M; m++) {
        float* to = out.data() + m / T * padded * T + m % T;
        for (int64_t i = begin * 32; i < std::min(end * 32, k); i++) to[i * T] = qk::to_float(from[m * k + i]);
      }
    });
  });
  return out;
}

// Rows m and up of x as LutPairs takes them.
struct PairRows {
  int64_t m, rows, height;
  uint32_t* pairs;
};

// x [M, k] bfloat16 in so few tiles as can be, which share its rows evenly, two by two.
std::vector<PairRows> in_pairs(const uint16_t* x, int64_t M, int64_t k, std::vector<uint32_t>& memory) {
  const int64_t twos = (M + 1) / 2, most = qk::LutPairs::kRows / 2, count = (twos + most - 1) / most, octets = (k + 31) / 32 * 4;
  memory.assign(octets * 4 * twos * 2, 0);
  std::vector<PairRows> tiles;
  for (int64_t i = 0; i < count; i++) {
    const int64_t m = twos * i / count * 2, end = twos * (i + 1) / count * 2;
    tiles.push_back({m, std::min(end, M) - m, end - m, memory.data() + octets * 4 * m});
  }
  torch::stable::parallel_for(0, octets, std::max<int64_t>(1, 4096 / M), [&](int64_t begin, int64_t end) {
    for (const PairRows& tile : tiles)
      for (int64_t m = 0; m < tile.rows; m++)
        for (int64_t o = begin; o < std::min(end, (k + 7) / 8); o++) {
          uint16_t octet[8] = {};
          memcpy(octet, x + (tile.m + m) * k + o * 8, std::min<int64_t>(8, k - o * 8) * 2);
          uint32_t* const to = tile.pairs + o * 4 * tile.height + m;
          for (int i = 0; i < 4; i++) to[i * tile.height] = octet[i] | uint32_t(octet[i + 4]) << 16;
        }
  });
  return tiles;
}

// start(), once in each thread, gives body(begin, end): stripes, for M rows of x, of which a kernel takes up to `unit` at a time.
template <class Start> void over_stripes(const Weight& w, int64_t M, int64_t unit, Start start) {
  const int64_t all = stripes(w.packed.N);
  qk::balanced((all + unit - 1) / unit, std::max<int64_t>(1, 8192 / (w.packed.K * M * unit)), [&] {
    return [all, unit, body = start()](int64_t begin, int64_t end) { body(begin * unit, std::min(end * unit, all)); };
  });
}

// Rows of x [M, K] and y [M, N], both of dtype, and those of them that are left for other kernels.
struct Rows {
  const void* x;
  void* y;
  int64_t M, K, N;
  int dtype;  // as Output has it
  std::vector<int64_t> left = {};
  int64_t bytes() const { return dtype == 0 ? 4 : 2; }  // of a value
  const uint8_t* from(int64_t m) const { return static_cast<const uint8_t*>(x) + m * K * bytes(); }
  uint8_t* at(int64_t m) const { return static_cast<uint8_t*>(y) + m * N * bytes(); }
  qk::Output to(int64_t m) const { return {at(m), dtype}; }
  void note(const std::vector<char>& fits, int64_t first) {
    for (size_t i = 0; i < fits.size(); i++)
      if (!fits[i]) left.push_back(first + int64_t(i));
  }
  // run(rows) for those that are left, filled up to `least` rows by repeating the last one.
  template <class Run> void finish(size_t least, Run run) const {
    if (left.empty()) return;
    const int64_t count = std::max(least, left.size());
    std::vector<uint8_t> own(count * K * bytes()), out(count * N * bytes());
    const Rows rows{own.data(), out.data(), count, K, N, dtype};
    for (int64_t i = 0; i < count; i++) memcpy(&own[i * K * bytes()], from(left[std::min<size_t>(i, left.size() - 1)]), K * bytes());
    run(rows);
    for (size_t i = 0; i < left.size(); i++) memcpy(at(left[i]), rows.at(i), N * bytes());
  }
};

// One row of x. Each thread spreads it, which takes less than to read what another core has written.
void alone(const Weight& w, const float* bias, const Rows& rows, const qk::LutAlone& kernels) {
  std::vector<float> x(rows.K);
  widen(rows.x, rows.dtype, rows.K, x.data());
  int64_t floats = 0, numbers = 0;
  kernels.room(w.packed, &floats, &numbers);
  const int64_t unit = w.packed.bits <= 2 ? kUnit : 1;  // stripes share what is loaded of tables of nibbles
  over_stripes(w, 1, unit, [&] {
    static thread_local std::vector<uint8_t> memory;
    float* to = reinterpret_cast<float*>(qk::scratch(memory, (floats + numbers) * 4));
    int32_t* groups = reinterpret_cast<int32_t*>(to + floats);
    kernels.spread(w.packed, x.data(), to, groups);
    return [&, to, groups](int64_t begin, int64_t end) { kernels.linear(w.packed, begin, end, to, groups, bias, rows.to(0)); };
  });
}

// M > 1 rows, for a row alone is another kernel's.
void by_rows(const Weight& w, const float* bias, const Rows& rows) {
  const qk::LutKernels& kernels = qk::lut_kernels_of(w.packed);
  const int64_t M = rows.M, tiles = (M + kernels.tile - 1) / kernels.tile, T = (M + tiles - 1) / tiles;
  const std::vector<float> tiled = in_tiles(rows.x, rows.dtype, M, rows.K, T);
  over_stripes(w, M, kUnit, [&] {
    static thread_local std::vector<uint8_t> memory;
    float* const sums = reinterpret_cast<float*>(qk::scratch(memory, tiles * T * kernels.pair * qk::kStripe * 4));
    return [&, sums](int64_t begin, int64_t end) { kernels.linear(w.packed, begin, end, tiled.data(), M, T, bias, rows.to(0), sums); };
  });
}
constexpr size_t kLeastRows = 2;  // for by_rows

// Whether all of it is 0, or what is denormal in its sums, and counts as 0 by these instructions, is no more than a rounding.
bool fits_pairs(const uint16_t* row, int64_t K, float least) {
  uint16_t most = 0;
  for (int64_t k = 0; k < K; k++) most = std::max(most, uint16_t(row[k] & 0x7fff));
  return most == 0 || qk::from_bits(uint32_t(most) << 16) >= least;
}

// By products of pairs; false where they are not for the weight, or for x.
bool by_pairs(const Weight& w, const float* bias, Rows rows) {
  const qk::LutPairs& kernels = qk::lut_pairs_kernels();
  if (!kernels.linear || qk::isa() != qk::kAvx512Bf16 || rows.dtype != 2 || (w.packed.bits == 8 && !w.packed.uniform)) return false;
  const qk::BfloatLevels levels(w.levels.data(), w.count);
  if (!levels.fit || levels.parts > 1) return false;
  const uint16_t* const x = static_cast<const uint16_t*>(rows.x);
  std::vector<char> fits(rows.M);
  for (int64_t m = 0; m < rows.M; m++) fits[m] = fits_pairs(x + m * rows.K, rows.K, levels.least());
  if (rows.M == 1) {
    if (w.packed.bits == 1 || w.packed.bits == 8 || !fits[0]) return false;  // tables of nibbles, and integers, are faster
    alone(w, bias, rows, kernels.alone);
    return true;
  }
  std::vector<uint32_t> memory;
  const int64_t step = std::max<int64_t>(1, (4 << 20) / (rows.K * qk::LutPairs::kRows)) * qk::LutPairs::kRows;  // about 8 MB of x
  for (int64_t m = 0; m < rows.M; m += step) {
    const int64_t M = std::min(step, rows.M - m);
    const std::vector<PairRows> tiles = in_pairs(x + m * rows.K, M, rows.K, memory);
    over_stripes(w, M, kUnit, [&] {
      return [&](int64_t begin, int64_t end) {
        for (const PairRows& t : tiles) kernels.linear(w.packed, begin, end, t.pairs, t.rows, t.height, bias, rows.to(m + t.m));
      };
    });
  }
  rows.note(fits, 0);
  rows.finish(kLeastRows, [&](const Rows& left) { by_rows(w, bias, left); });
  return true;
}

// Up to how many rows levels of several parts cost more to decode than tiles save: rows of float32 always.
int64_t few_rows(const Weight& w, const qk::BfloatLevels& levels, int dtype) {
  if (levels.parts == 1) return 1;
  if (dtype == 0) return INT64_MAX;
  return levels.parts == 3 && w.packed.bits == 8 && !w.packed.uniform ? 12 : 5;
}

// As lut_linear, by the matrix tiles of the processor; false where there are none, where that takes longer for `of` rows, of which these
// are the ones that are left, or where a level is not for them.
bool by_tiles(const Weight& w, const float* bias, Rows rows, int64_t of) {
  const qk::LutAmx& amx = qk::lut_amx_kernels();
  if (rows.M == 1 || qk::isa() != qk::kAmx || !amx.linear) return false;  // null if another thread has just chosen another instruction set
  const qk::BfloatLevels levels(w.levels.data(), w.count);
  if (!levels.fit || of <= few_rows(w, levels, rows.dtype)) return false;
  static thread_local std::vector<uint8_t> memory;
  const int64_t K = w.packed.K, step = qk::AmxRows{nullptr, rows.M, K, 3 - rows.dtype}.held();
  for (int64_t m = 0; m < rows.M; m += step) {
    qk::AmxRows x{nullptr, std::min(step, rows.M - m), K, 3 - rows.dtype};
    x.data = reinterpret_cast<uint16_t*>(qk::scratch(memory, x.values() * 2));
    std::vector<char> fits(x.M);
    torch::stable::parallel_for(0, x.M, std::max<int64_t>(1, 32768 / K), [&](int64_t begin, int64_t end) {
      amx.split(x, begin, end, rows.from(m), rows.dtype, levels.least(), fits.data());
    });
    over_stripes(w, x.M, kUnit, [&] {
      static thread_local std::vector<uint8_t> own;
      uint8_t* const scratch = qk::scratch(own, qk::LutAmx::scratch(x));
      return [&, scratch](int64_t begin, int64_t end) { amx.linear(w.packed, levels, begin, end, x, bias, rows.to(m), scratch); };
    });
    rows.note(fits, m);
  }
  rows.finish(kLeastRows, [&](const Rows& left) { by_rows(w, bias, left); });
  return true;
}

// Rows of x up to which integers are faster than the other kernels: of 16 bits, than tiles of bfloat16; of bfloat16, than pairs of it
// (two or three rows of 2 to 4 bits take about as long in either way, but longer in integers if one of them does not fit).
int64_t integer_rows(const Weight& w, int dtype, const qk::IntegersHere& here) {
  const int bits = w.packed.bits;
  if (here.tiles) return dtype == 0 ? INT64_MAX : bits == 8 ? 8 : 4;
  if (!here.several || !qk::LutIntegersTurned::takes(w.packed)) return 1;
  if (dtype == 2) return bits == 8 ? 8 : 1;
  return dtype == 1 || bits == 8 ? INT64_MAX : bits == 3 ? 4 : 5;
}

// As lut_linear in integers; false where that takes longer, or where levels or, of one, the row are not for them.
bool by_integers(const Weight& w, const float* bias, Rows rows, const qk::IntegersHere& here) {
  const auto* const kernels = here.kernels;
  auto tiles = here.tiles;
  if (rows.M > integer_rows(w, rows.dtype, here) || (rows.M == 1 && w.packed.bits == 1)) return false;
  const qk::IntegerLevels levels(w.levels.data(), w.count, w.packed.bits);
  if (!levels.fit || (!levels.affine && (!tiles || (rows.M == 1 && w.packed.bits == 2)))) return false;  // tables of nibbles are faster
  if (rows.M == 1 && levels.affine && (w.packed.bits <= 4 || here.eights || here.turned)) tiles = nullptr;  // they would be nearly empty
  const bool eights = rows.M == 1 && !tiles && here.eights && qk::LutIntegersEights::takes(w.packed);
  const bool turned = !eights && !tiles && here.turned && qk::LutIntegersTurned::takes(w.packed);
  const int digits = rows.dtype == 0 ? 4 : 3;
  const bool bytes = rows.M == 1 && here.bytes && here.bytes->takes(w.packed, digits);
  const auto alone = eights ? here.eights : turned ? here.turned : bytes ? here.bytes->alone : kernels->alone;
  static thread_local std::vector<uint8_t> memory;
  const auto part = [&](int64_t M) {
    return qk::IntegerRows{.M = M, .K = w.packed.K, .group = w.packed.group, .bits = w.packed.bits, .digits = digits,
                           .for_tiles = tiles != nullptr, .paired = bytes || (eights && w.packed.bits < 8), .turned = turned};
  };
  for (int64_t m = 0, step = part(rows.M).held(); m < rows.M; m += step) {
    qk::IntegerRows x = part(std::min(step, rows.M - m));
    x.place(qk::scratch(memory, x.room()));
    std::vector<char> fits(x.M);
    torch::stable::parallel_for(0, x.M, std::max<int64_t>(1, 32768 / x.K), [&](int64_t begin, int64_t end) {
      kernels->split(x, levels, begin, end, rows.from(m), rows.dtype, fits.data());
    });
    if (rows.M == 1 && !fits[0]) return false;
    rows.note(fits, m);
    const int64_t fit = std::count(fits.begin(), fits.end(), char(true));
    if (fit == 0) continue;
    if (!tiles && fit < x.M) {  // tiles take others as zeros; here that would take as long as those that fit
      Rows those{rows.from(m), rows.at(m), x.M, rows.K, rows.N, rows.dtype};
      for (int64_t i = 0; i < x.M; i++)
        if (fits[i]) those.left.push_back(i);
      those.finish(1, [&](const Rows& all) { by_integers(w, bias, all, here); });
      continue;
    }
    over_stripes(w, x.M, tiles ? kUnit : 1, [&] {
      static thread_local std::vector<uint8_t> own;
      uint8_t* const scratch = tiles ? qk::scratch(own, qk::LutIntegersAmx::scratch(x)) : nullptr;
      return [&, scratch](int64_t begin, int64_t end) {
        if (scratch) tiles(w.packed, levels, begin, end, x, bias, rows.to(m), scratch);
        else alone(w.packed, levels, begin, end, x, bias, rows.to(m));
      };
    });
  }
  rows.finish(kLeastRows, [&](const Rows& left) {
    if (!by_tiles(w, bias, left, rows.M) && !by_pairs(w, bias, left)) by_rows(w, bias, left);
  });
  return true;
}

// y = x w^T + bias, of M > 0 rows.
void linear(const Weight& w, qk::Given given, Rows rows) {
  std::vector<float> wide;  // bias
  if (given.data && given.dtype) wide.resize(given.numel), widen(given.data, given.dtype, given.numel, wide.data());
  const float* const bias = wide.empty() ? static_cast<const float*>(given.data) : wide.data();
  if (by_integers(w, bias, rows, qk::integers_here()) || by_tiles(w, bias, rows, rows.M) || by_pairs(w, bias, rows)) return;
  if (rows.M > 1) return by_rows(w, bias, rows);
  if (w.is_finite()) return alone(w, bias, rows, qk::lut_alone_of(w.packed));
  rows.left = {0};  // what pads that kernel's wider tiles would be NaN
  rows.finish(kLeastRows, [&](const Rows& both) { by_rows(w, bias, both); });
}

Tensor lut_linear(Tensor x, Tensor codes, Tensor levels, Tensor scale, std::optional<Tensor> bias, int64_t bits,
                  int64_t group_size, int64_t n, int64_t k) {
  const qk::PackedTensors given(codes, levels, scale, bits, group_size, n, k);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == k, "x must be [M, k=", k, "]");
  const int dtype = qk::dtype_index(x);
  STD_TORCH_CHECK(!bias.has_value() || bias->numel() == n, "bias must have n=", n, " values");
  qk::check_memory(x, "x");
  if (bias.has_value()) qk::check_memory(*bias, "bias");
  const int64_t M = x.size(0);
  if (M == 0) return torch::stable::new_empty(x, {0, n});
  if (bias.has_value()) bias = qk::float_tensor(*bias);
  if (!x.is_contiguous()) x = torch::stable::contiguous(x);
  Tensor y = torch::stable::new_empty(x, {M, n});
  linear(Weight(given.packed, given.count), bias.has_value() ? qk::Given{bias->data_ptr(), n, 0} : qk::Given{},
         {x.data_ptr(), y.data_ptr(), M, k, n, dtype});
  return y;
}

QK_EXPORT(cpu, lut_dequantize, "(Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, int n, int k) -> Tensor")
QK_EXPORT(cpu, lut_linear,
          "(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, int n, int k) -> Tensor")

// Shows the call to whatever records functions, by the name that it has by way of the dispatcher.
struct Recorded {
  AtenRecordFunctionHandle handle = nullptr;
  Recorded() { aoti_record_function_start("qkernels_cpu::lut_linear", nullptr, nullptr, 0, &handle); }
  Recorded(const Recorded&) = delete;
  ~Recorded() { if (handle) aoti_record_function_end(handle); }
};

}  // namespace

int qk_lut_linear(const qk::LutLinearCall* a) {
  try {
    const qk::Packed packed = qk::checked_packed(a->codes, a->levels, a->scale, a->bits, a->group_size, a->n, a->k);
    if (a->x.numel == 0 || a->x.numel % a->k != 0 || a->x.dtype > 2 || (a->bias.data && (a->bias.numel != a->n || a->bias.dtype > 2)))
      return 0;
    if (!a->y) return 1;
    const Recorded recorded;
    linear(Weight(packed, int(a->levels.numel)), a->bias, {a->x.data, a->y, a->x.numel / a->k, a->k, a->n, a->x.dtype});
    return 1;
  } catch (...) {
    return 0;
  }
}
