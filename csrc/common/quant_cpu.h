// From tensors to the loops of quant_simd.h: the CPU side of every block-wise quantizer. x, g contiguous; parameters
// float32 [P], contiguous. (The Python side has checked what a user can get wrong.)
#pragma once
#include <algorithm>
#include <torch/csrc/stable/ops.h>
#include <vector>
#include "export.h"
#include "isa.h"
#include "quant_kernels.h"
#include "tensors.h"

namespace qk {

// Jobs per thread at least: 16 Ki elements, a few microseconds, are not worth waking a second thread.
inline int64_t grain(const Blocks& b) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, std::min(b.L, kChunk))); }

template <class Args, size_t N>
Tensor quant_forward(const QuantKernels<Args>& kernels, const Args& args, const Tensor& x, const std::array<Tensor, N>& params) {
  Tensor y = torch::stable::empty_like(x);
  const auto pointers = param_pointers(params);
  const Blocks b = checked_blocks(x, params);
  const auto kernel = kernels.forward[dtype_index(x)];
  const void* in = x.data_ptr();
  void* out = y.data_ptr();
  torch::stable::parallel_for(0, b.jobs, grain(b), [&](int64_t begin, int64_t end) {
    kernel(args, b, begin, end, in, pointers.data(), out);
  });
  return y;
}

// dx, and the gradient of each parameter: [P], the partial sums of a block's chunks added in their order.
template <class Args, size_t N>
std::pair<Tensor, std::array<Tensor, N>> quant_backward(const QuantKernels<Args>& kernels, const Args& args, const Tensor& g,
                                                        const Tensor& x, const std::array<Tensor, N>& params) {
  check_gradient(g, x);
  Tensor dx = torch::stable::empty_like(x);
  const auto pointers = param_pointers(params);
  const Blocks b = checked_blocks(x, params);
  const auto kernel = kernels.backward[dtype_index(x)];
  std::vector<double> partial(b.jobs * N);
  const void *gi = g.data_ptr(), *xi = x.data_ptr();
  void* out = dx.data_ptr();
  torch::stable::parallel_for(0, b.jobs, grain(b), [&](int64_t begin, int64_t end) {
    kernel(args, b, begin, end, gi, xi, pointers.data(), out, partial.data());
  });
  std::array<Tensor, N> grads;
  for (size_t k = 0; k < N; k++) {
    grads[k] = torch::stable::empty_like(params[k]);
    float* grad = static_cast<float*>(grads[k].data_ptr());
    for (int64_t p = 0; p < params[k].numel(); p++) {
      double total = 0;
      for (int64_t c = 0; c < b.chunks; c++) total += partial[(p * b.chunks + c) * N + k];
      grad[p] = static_cast<float>(total);
    }
  }
  return {dx, grads};
}

}  // namespace qk
