// From tensors to the launches of quant_kernels.cuh: the CUDA side of every block-wise quantizer.
#pragma once
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include "export.h"
#include "quant_cuda_kernels.h"
#include "tensors.h"

namespace qk {

inline cudaStream_t current_stream(const Tensor& x) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check(cudaError_t e, const char* op) { STD_TORCH_CHECK(e == cudaSuccess, op, ": ", cudaGetErrorString(e)); }

template <int N>
Params<N> device_params(const std::array<Tensor, N>& params) {
  const auto pointers = param_pointers(params);
  Params<N> r;
  for (int i = 0; i < N; i++) r.p[i] = pointers[i];
  return r;
}

template <class Args, int N>
Tensor quant_forward(const char* name, const QuantCudaKernels<Args, N>& kernels, const Args& args, const Tensor& x,
                     const std::array<Tensor, N>& params) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  const Blocks b = checked_blocks(x, params);
  check(kernels.forward[dtype_index(x)](args, b, x.data_ptr(), device_params<N>(params), y.data_ptr(), current_stream(x)), name);
  return y;
}

// dx, and grads [N, P].
template <class Args, int N>
std::pair<Tensor, Tensor> quant_backward(const char* name, const QuantCudaKernels<Args, N>& kernels, const Args& args,
                                         const Tensor& g, const Tensor& x, const std::array<Tensor, N>& params) {
  check_gradient(g, x);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Blocks b = checked_blocks(x, params);
  Tensor dx = torch::stable::empty_like(x);
  Tensor partial = torch::stable::new_zeros(params[0], {b.jobs * N}), grads = torch::stable::new_zeros(params[0], {N, params[0].numel()});
  check(kernels.backward[dtype_index(x)](args, b, g.data_ptr(), x.data_ptr(), device_params<N>(params), dx.data_ptr(),
                                              static_cast<float*>(partial.data_ptr()), static_cast<float*>(grads.data_ptr()),
                                              current_stream(x)), name);
  return {dx, grads};
}

}  // namespace qk
