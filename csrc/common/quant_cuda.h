// From tensors to the launches of quant_kernels.cuh: the CUDA side of every block-wise quantizer.
#pragma once
#include <array>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include "blocks.h"
#include "export.h"
#include "quant_cuda_kernels.h"

namespace qk {

using torch::stable::Tensor;

inline int cuda_dtype_index(const Tensor& x) {
  using torch::headeronly::ScalarType;
  const ScalarType t = x.scalar_type();
  STD_TORCH_CHECK(t == ScalarType::Float || t == ScalarType::Half || t == ScalarType::BFloat16, "needs float32, float16 or bfloat16");
  return t == ScalarType::Float ? 0 : t == ScalarType::Half ? 1 : 2;
}

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check(cudaError_t e, const char* op) { STD_TORCH_CHECK(e == cudaSuccess, op, ": ", cudaGetErrorString(e)); }

template <int N>
Params<N> device_params(const std::array<Tensor, N>& params) {
  Params<N> r;
  for (int i = 0; i < N; i++) {
    STD_TORCH_CHECK(params[i].scalar_type() == torch::headeronly::ScalarType::Float && params[i].is_contiguous(),
                    "parameters must be float32 and contiguous");
    r.p[i] = static_cast<const float*>(params[i].data_ptr());
  }
  return r;
}

// The geometry of x [P, L]; refuses what would read or write elsewhere.
template <int N>
Blocks checked_cuda_blocks(const Tensor& x, const std::array<Tensor, N>& params) {
  const int64_t P = params[0].numel();
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous");
  STD_TORCH_CHECK(P > 0 && x.numel() % P == 0, "P must divide x.numel()=", x.numel(), ", got P=", P);
  for (const Tensor& p : params) STD_TORCH_CHECK(p.numel() == P, "parameters must have P=", P, " values, got ", p.numel());
  return make_blocks(P, x.numel());
}

template <class Args, int N>
Tensor quant_forward(const char* name, const QuantCudaKernels<Args, N>& kernels, const Args& args, const Tensor& x,
                     const std::array<Tensor, N>& params) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  const Blocks b = checked_cuda_blocks<N>(x, params);
  check(kernels.forward[cuda_dtype_index(x)](args, b, x.data_ptr(), device_params<N>(params), y.data_ptr(), current_stream(x)), name);
  return y;
}

// dx, and grads [N, P].
template <class Args, int N>
std::pair<Tensor, Tensor> quant_backward(const char* name, const QuantCudaKernels<Args, N>& kernels, const Args& args,
                                         const Tensor& g, const Tensor& x, const std::array<Tensor, N>& params) {
  STD_TORCH_CHECK(g.scalar_type() == x.scalar_type() && g.numel() == x.numel() && g.is_contiguous(),
                  "g must be contiguous and like x");
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Blocks b = checked_cuda_blocks<N>(x, params);
  Tensor dx = torch::stable::empty_like(x);
  Tensor partial = torch::stable::new_zeros(params[0], {b.jobs * N}), grads = torch::stable::new_zeros(params[0], {N, params[0].numel()});
  check(kernels.backward[cuda_dtype_index(x)](args, b, g.data_ptr(), x.data_ptr(), device_params<N>(params), dx.data_ptr(),
                                              static_cast<float*>(partial.data_ptr()), static_cast<float*>(grads.data_ptr()),
                                              current_stream(x)), name);
  return {dx, grads};
}

}  // namespace qk
