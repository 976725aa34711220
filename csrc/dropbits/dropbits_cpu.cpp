#include <tuple>
#include "../common/quant_cpu.h"
#include "dropbits_kernels.h"
#include "dropbits_tensors.h"

namespace {
using qk::Tensor;

Tensor dropbits_fwd(Tensor x, Tensor step, Tensor sigma, Tensor keep, int64_t bits) {
  const auto c = qk::checked_dropbits(x, step, sigma, keep, bits);
  Tensor y = torch::stable::empty_like(x);
  const auto kernel = qk::dropbits_kernels().forward[qk::dtype_index(x)];
  const void* in = x.data_ptr();
  void* out = y.data_ptr();
  torch::stable::parallel_for(0, c.blocks.jobs, qk::grain(c.blocks), [&](int64_t begin, int64_t end) {
    kernel(c.args, c.blocks, begin, end, in, c.params.data(), out);
  });
  return y;
}

// dx, and the gradients of step and sigma [P] and of the gates, which all blocks share.
std::tuple<Tensor, Tensor, Tensor, Tensor> dropbits_bwd(Tensor g, Tensor x, Tensor step, Tensor sigma, Tensor keep, int64_t bits) {
  qk::check_gradient(g, x);
  const auto c = qk::checked_dropbits(x, step, sigma, keep, bits);
  Tensor dx = torch::stable::empty_like(x);
  const auto kernel = qk::dropbits_kernels().backward[qk::dtype_index(x)];
  const int64_t count = 2 + keep.numel(), chunks = c.blocks.chunks;
  std::vector<double> partial(c.blocks.jobs * count);
  const void *gi = g.data_ptr(), *xi = x.data_ptr();
  void* out = dx.data_ptr();
  torch::stable::parallel_for(0, c.blocks.jobs, qk::grain(c.blocks), [&](int64_t begin, int64_t end) {
    kernel(c.args, c.blocks, begin, end, gi, xi, c.params.data(), out, partial.data());
  });
  std::array<Tensor, 3> grads{torch::stable::empty_like(step), torch::stable::empty_like(sigma), torch::stable::empty_like(keep)};
  for (int64_t k = 0; k < count; k++) {
    float* grad = static_cast<float*>(grads[k < 2 ? k : 2].data_ptr());
    double total = 0;
    for (int64_t job = 0; job < c.blocks.jobs; job++) {
      total += partial[job * count + k];
      if (k < 2 && (job + 1) % chunks == 0) grad[job / chunks] = static_cast<float>(total), total = 0;
    }
    if (k < 2 && c.blocks.jobs == 0) std::fill(grad, grad + step.numel(), 0.0f);
    if (k >= 2) grad[k - 2] = static_cast<float>(total);
  }
  return {dx, grads[0], grads[1], grads[2]};
}

QK_EXPORT(cpu, dropbits_fwd, "(Tensor x, Tensor step, Tensor sigma, Tensor keep, int bits) -> Tensor")
QK_EXPORT(cpu, dropbits_bwd,
          "(Tensor g, Tensor x, Tensor step, Tensor sigma, Tensor keep, int bits) -> (Tensor, Tensor, Tensor, Tensor)")
}  // namespace
