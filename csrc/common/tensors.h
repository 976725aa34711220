// What the CPU and CUDA bindings of block-wise quantizers check and read from their tensors.
#pragma once
#include <array>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include "blocks.h"

namespace qk {

using torch::stable::Tensor;

// Index into a table of kernels: 0 float32, 1 float16, 2 bfloat16.
inline int dtype_index(const Tensor& x) {
  using torch::headeronly::ScalarType;
  const ScalarType t = x.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16, 
                  "x must be float32, float16 or bfloat16, got a dtype of ", x.element_size(), " bytes");
  return t == ScalarType::Float ? 0 : t == ScalarType::Half ? 1 : 2;
}

// Refuses what has no memory: its storage was resized to 0, as sharding does with a parameter between its uses.
inline void check_memory(const Tensor& t, const char* name) {
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STD_TORCH_CHECK(bytes > 0 || t.numel() == 0, name, " must be in memory, got ", t.numel(), " values whose storage was freed");
}

template <size_t N>
std::array<const float*, N> param_pointers(const std::array<Tensor, N>& params) {
  std::array<const float*, N> pointers;
  for (size_t i = 0; i < N; i++) {
    STD_TORCH_CHECK(params[i].scalar_type() == torch::headeronly::ScalarType::Float && params[i].is_contiguous(),
                    "parameters must be float32 and contiguous, got number ", i, " that is not");
    check_memory(params[i], "parameters");
    pointers[i] = static_cast<const float*>(params[i].data_ptr());
  }
  return pointers;
}

// The geometry of x [P, L]; refuses what would read or write elsewhere.
template <size_t N>
Blocks checked_blocks(const Tensor& x, const std::array<Tensor, N>& params) {
  const int64_t P = params[0].numel();
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous, got strides that are not");
  check_memory(x, "x");
  STD_TORCH_CHECK(P > 0 && x.numel() % P == 0, "P must divide x.numel()=", x.numel(), ", got P=", P);
  for (const Tensor& p : params) STD_TORCH_CHECK(p.numel() == P, "parameters must have P=", P, " values, got ", p.numel());
  return make_blocks(P, x.numel());
}

inline void check_gradient(const Tensor& g, const Tensor& x) {
  STD_TORCH_CHECK(g.scalar_type() == x.scalar_type() && g.numel() == x.numel() && g.is_contiguous(),
                  "g must be contiguous and like x, of ", x.numel(), " values, got ", g.numel());
  check_memory(g, "g");
}

}  // namespace qk
