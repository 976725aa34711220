// The CUDA side of packed weights. The Python side has checked shapes and devices, and chosen how the decode kernel is spread.
#include <optional>
#include "../common/quant_cuda.h"
#include "lut_linear_cuda_kernels.h"
#include "lut_linear_tensors.h"

namespace {

using qk::Tensor;
using torch::headeronly::ScalarType;

struct Weight : qk::PackedTensors {
  Weight(const Tensor& codes, const Tensor& levels, const Tensor& scales, int64_t bits, int64_t group, int64_t n, int64_t k)
      : PackedTensors(codes, levels, scales, bits, group, n, k) {
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(codes.data_ptr()) % 16 == 0, "codes must start at a multiple of 16 bytes");
  }
};

// Of the dtype of `like`.
Tensor lut_dequantize(Tensor like, Tensor codes, Tensor levels, Tensor scale, int64_t bits, int64_t group_size, int64_t n, int64_t k) {
  const torch::stable::accelerator::DeviceGuard guard(codes.get_device_index());
  const Weight w(codes, levels, scale, bits, group_size, n, k);
  STD_TORCH_CHECK((n + 15) / 16 * ((k + 31) / 32) <= (int64_t(1) << 32) - 32, "the weight must have less than 2**41 elements, got [", n, ", ", k, "]");
  Tensor out = torch::stable::new_empty(like, {n, k});
  qk::check(qk::lut_dequantize_cuda(w.packed, w.count, out.data_ptr(), qk::dtype_index(like), qk::current_stream(codes)), "lut_dequantize");
  return out;
}

// What both matmuls ask of their arguments, and what they need: y, float32 bias, room for the parts of `splits` thread blocks.
struct Product {
  Weight w;
  Tensor y, partial;
  std::optional<Tensor> bias;
  Product(const Tensor& x, const Tensor& codes, const Tensor& levels, const Tensor& scale, const std::optional<Tensor>& given,
          int64_t bits, int64_t group, int64_t n, int64_t k, int64_t splits)
      : w(codes, levels, scale, bits, group, n, k), y(torch::stable::new_empty(x, {x.size(0), n})),
        partial(torch::stable::new_empty(levels, {splits > 1 ? splits * x.size(0) * n : 0})) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16, "x must be float16 or bfloat16");
    STD_TORCH_CHECK(x.dim() == 2 && x.size(1) == k && x.is_contiguous(), "x must be contiguous [M, k=", k, "]");
    STD_TORCH_CHECK(!given.has_value() || given->numel() == n, "bias must have n=", n, " values");
    STD_TORCH_CHECK(k < qk::kDecodeMostColumns, "k must be below ", qk::kDecodeMostColumns, ", got ", k);
    STD_TORCH_CHECK(w.scale.numel() < int64_t(1) << 31, "scale must have less than 2**31 values, got ", w.scale.numel());
    STD_TORCH_CHECK(splits >= 1 && splits <= 65535, "splits must be from 1 to 65535, got ", splits);
    qk::check_memory(x, "x");
    if (given.has_value()) qk::check_memory(*given, "bias");
    if (given.has_value()) bias = torch::stable::contiguous(torch::stable::to(*given, ScalarType::Float));
  }
  qk::Decode args(const Tensor& rows, int64_t M, qk::DecodePlan plan) const {
    return {w.packed, w.count, rows.data_ptr(), M, rows.size(1), bias.has_value() ? static_cast<const float*>(bias->data_ptr()) : nullptr,
            y.data_ptr(), static_cast<float*>(partial.data_ptr()), plan};
  }
};

template <int BITS> struct Bits { static constexpr int value = BITS; };
template <class Body>
void for_bits(int64_t bits, Body body) {
  switch (bits) {
    case 1: return body(Bits<1>{});
    case 2: return body(Bits<2>{});
    case 3: return body(Bits<3>{});
    case 4: return body(Bits<4>{});
    default: return body(Bits<8>{});
  }
}

Tensor lut_decode(Tensor x, Tensor codes, Tensor levels, Tensor scale, std::optional<Tensor> bias, int64_t bits, int64_t group_size,
                  int64_t n, int64_t k, int64_t stripes, int64_t splits, int64_t warps, bool early) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const bool as_it_is = scale.scalar_type() == x.scalar_type() && !qk::is_fine(group_size, k);
  const Tensor scales = as_it_is ? scale : qk::float_tensor(scale);
  const Product p(x, codes, levels, scales, bias, bits, group_size, n, k, splits);
  STD_TORCH_CHECK(stripes >= 1 && (n + 15) / 16 <= stripes * 65535, "stripes must be at least n / 16 / 65535, got ", stripes);
  STD_TORCH_CHECK(warps == 1 || warps == 2 || warps == 4 || warps == 8, "warps must be 1, 2, 4 or 8, got ", warps);
  const int64_t M = x.size(0), columns = qk::decode_columns(int(bits)), ld = (k + columns - 1) / columns * columns;
  if (M == 0) return p.y;
  Tensor rows = x;
  if (ld != k || reinterpret_cast<uintptr_t>(x.data_ptr()) % 16) rows = torch::stable::pad(x, {0, ld - k});
  const qk::Decode d = p.args(rows, M, {int(stripes), int(splits), int(warps), early});
  for_bits(bits, [&](auto b) {
    qk::check(qk::lut_decode_cuda<b.value>(d, x.scalar_type() == ScalarType::BFloat16, qk::current_stream(x)), "lut_linear");
  });
  return p.y;
}

Tensor lut_prefill(Tensor x, Tensor codes, Tensor levels, Tensor scale, std::optional<Tensor> bias, int64_t bits, int64_t group_size,
                   int64_t n, int64_t k, int64_t splits, bool early) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Product p(x, codes, levels, qk::float_tensor(scale), bias, bits, group_size, n, k, splits);
  STD_TORCH_CHECK(group_size == k || group_size % 64 == 0, "group_size must be a multiple of 64, or k=", k, ", got ", group_size);
  STD_TORCH_CHECK((n + 127) / 128 <= 65535, "n must be at most ", 65535 * 128, ", got ", n);
  if (x.size(0) == 0) return p.y;
  const Tensor image = torch::stable::new_empty(codes, {qk::prefill_bytes(int(bits), x.size(0), k)});
  const qk::Decode d = p.args(x, x.size(0), {0, int(splits), 0, early});
  for_bits(bits, [&](auto b) {
    qk::check(qk::lut_prefill_cuda<b.value>(d, image.data_ptr(), x.scalar_type() == ScalarType::BFloat16, qk::current_stream(x)), "lut_linear");
  });
  return p.y;
}

QK_EXPORT(cuda, lut_dequantize,
          "(Tensor like, Tensor codes, Tensor levels, Tensor scale, int bits, int group_size, int n, int k) -> Tensor")
QK_EXPORT(cuda, lut_decode,
          "(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, int n, int k, "
          "int stripes, int splits, int warps, bool early) -> Tensor")
QK_EXPORT(cuda, lut_prefill,
          "(Tensor x, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, int group_size, int n, int k, "
          "int splits, bool early) -> Tensor")

}  // namespace
