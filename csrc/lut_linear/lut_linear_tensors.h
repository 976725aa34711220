// What the CPU and CUDA bindings of packed weights check and read from their tensors.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>
#include "../common/tensors.h"
#include "lut_linear.h"

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

// [M, n] like t, on a CPU: without the way through the dispatcher, which takes longer than to split a row of x.
inline torch::stable::Tensor empty_on_cpu(const torch::stable::Tensor& like, int64_t M, int64_t n) {
  const int64_t sizes[] = {M, n}, strides[] = {n, 1};
  int32_t dtype = 0;
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(2, sizes, strides, dtype, aoti_torch_device_type_cpu(), 0, &made));
  return torch::stable::Tensor(made);
}

struct __attribute__((visibility("hidden"))) PackedTensors {  // as Tensor is
  torch::stable::Tensor scale;
  int count;                    // of levels
  Packed packed;

  PackedTensors(const torch::stable::Tensor& codes, const torch::stable::Tensor& levels, const torch::stable::Tensor& scales,
                int64_t bits, int64_t group, int64_t n, int64_t k)
      : scale(is_float(scales) && scales.is_contiguous() ? scales : float_tensor(scales)), count(int(levels.numel())) {
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Byte && codes.is_contiguous(), "codes must be uint8 and contiguous");
    STD_TORCH_CHECK(levels.scalar_type() == ScalarType::Float && levels.is_contiguous() && levels.numel() <= 256,
                    "levels must be float32, contiguous, at most 256, got ", levels.numel(), " values");
    STD_TORCH_CHECK(bits == 1 || bits == 2 || bits == 3 || bits == 4 || bits == 8, "bits must be 1, 2, 3, 4 or 8, got ", bits);
    STD_TORCH_CHECK(n > 0 && k > 0, "n and k must be positive, got ", n, " and ", k);
    STD_TORCH_CHECK(group > 0 && k % group == 0 && (group % 32 == 0 || group == k),
                    "group_size must divide k=", k, " and be a multiple of 32, or k, got ", group);
    const int64_t stripes = (n + kStripe - 1) / kStripe, low = bits == 3 ? 2 : bits;
    const int64_t bytes = stripes * ((k * low + 255) / 256 + (bits == 3 ? (k + 255) / 256 : 0)) * 512;
    STD_TORCH_CHECK(codes.numel() == bytes, "codes must have ", bytes, " bytes for bits=", bits, ", n=", n, ", k=", k, ", got ", codes.numel());
    STD_TORCH_CHECK(scale.numel() == stripes * kStripe * (k / group),
                    "scale must have ", stripes * kStripe * (k / group), " values for n=", n, " and k / group_size=", k / group, ", got ", scale.numel());
    packed = {static_cast<const uint8_t*>(codes.data_ptr()), static_cast<const float*>(levels.data_ptr()),
              {scale.data_ptr(), dtype_index(scale)}, int(bits), n, k, group, k / group};
  }
};

}  // namespace qk
