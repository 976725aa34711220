// What the CPU and CUDA bindings of packed weights check and read from their tensors.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include "../common/tensors.h"
#include "lut_linear.h"
#include "lut_linear_direct.h"

namespace qk {

inline bool is_float(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  const ScalarType type = t.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16;
}

// t as float32 and contiguous; t itself where it is, which costs less than to ask torch.
inline torch::stable::Tensor float_tensor(const torch::stable::Tensor& t) {
  using torch::headeronly::ScalarType;
  if (t.scalar_type() == ScalarType::Float && t.is_contiguous()) return t;
  return torch::stable::contiguous(torch::stable::to(t, ScalarType::Float));
}

// The weight, if the parts fit each other.
inline Packed checked_packed(Given codes, Given levels, Given scale, int64_t bits, int64_t group, int64_t n, int64_t k) {
  STD_TORCH_CHECK(codes.dtype == 3, "codes must be uint8 and contiguous");
  STD_TORCH_CHECK(levels.dtype == 0 && levels.numel <= 256, "levels must be float32, contiguous, at most 256, got ", levels.numel, " values");
  STD_TORCH_CHECK(bits == 1 || bits == 2 || bits == 3 || bits == 4 || bits == 8, "bits must be 1, 2, 3, 4 or 8, got ", bits);
  STD_TORCH_CHECK(n > 0 && k > 0, "n and k must be positive, got ", n, " and ", k);
  STD_TORCH_CHECK(group > 0 && k % group == 0 && (group % 32 == 0 || group == k),
                  "group_size must divide k=", k, " and be a multiple of 32, or k, got ", group);
  const int64_t stripes = (n + kStripe - 1) / kStripe, low = bits == 3 ? 2 : bits;
  const int64_t bytes = stripes * ((k * low + 255) / 256 + (bits == 3 ? (k + 255) / 256 : 0)) * 512;
  STD_TORCH_CHECK(codes.numel == bytes, "codes must have ", bytes, " bytes for bits=", bits, ", n=", n, ", k=", k, ", got ", codes.numel);
  STD_TORCH_CHECK(scale.dtype >= 0 && scale.dtype < 3, "scale must be float32, float16 or bfloat16 and contiguous");
  STD_TORCH_CHECK(scale.numel == stripes * kStripe * (k / group),
                  "scale must have ", stripes * kStripe * (k / group), " values for n=", n, " and k / group_size=", k / group, ", got ", scale.numel);
  return {static_cast<const uint8_t*>(codes.data), static_cast<const float*>(levels.data), {scale.data, scale.dtype}, int(bits), n, k, group, k / group};
}

struct __attribute__((visibility("hidden"))) PackedTensors {  // as Tensor is
  torch::stable::Tensor scale;
  int count;                    // of levels
  Packed packed;

  PackedTensors(const torch::stable::Tensor& codes, const torch::stable::Tensor& levels, const torch::stable::Tensor& scales,
                int64_t bits, int64_t group, int64_t n, int64_t k)
      : scale(is_float(scales) && scales.is_contiguous() ? scales : float_tensor(scales)), count(int(levels.numel())),
        packed(checked_packed(given(codes, "codes"), given(levels, "levels"), given(scale, "scale"), bits, group, n, k)) {}

 private:
  static Given given(const torch::stable::Tensor& t, const char* name) {
    check_memory(t, name);
    const int dtype = is_float(t) ? dtype_index(t) : t.scalar_type() == torch::headeronly::ScalarType::Byte ? 3 : -1;
    return {t.data_ptr(), t.numel(), t.is_contiguous() ? dtype : -1};
  }
};

}  // namespace qk
