#include <tuple>
#include "../common/quant_cuda.h"
#include "dropbits_cuda_kernels.h"
#include "dropbits_tensors.h"

namespace qk { extern const DropBitsCudaKernels dropbits_cuda; }

namespace {
using qk::Tensor;

Tensor dropbits_fwd(Tensor x, Tensor step, Tensor sigma, Tensor keep, int64_t bits) {
  const auto c = qk::checked_dropbits(x, step, sigma, keep, bits);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  qk::check(qk::dropbits_cuda.forward[qk::dtype_index(x)](c.args, c.blocks, x.data_ptr(),
                                                          qk::device_params<3>({step, sigma, keep}), y.data_ptr(),
                                                          qk::current_stream(x)),
            "dropbits_fwd");
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropbits_bwd(Tensor g, Tensor x, Tensor step, Tensor sigma, Tensor keep, int64_t bits) {
  qk::check_gradient(g, x);
  const auto c = qk::checked_dropbits(x, step, sigma, keep, bits);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const auto zeros = [&](int64_t n) { return torch::stable::new_zeros(step, {n}); };
  Tensor dx = torch::stable::empty_like(x), partial = zeros(c.blocks.jobs * (2 + keep.numel()));
  Tensor dstep = zeros(step.numel()), dsigma = zeros(step.numel()), dkeep = zeros(keep.numel());
  const auto floats = [](const Tensor& t) { return static_cast<float*>(t.data_ptr()); };
  qk::check(qk::dropbits_cuda.backward[qk::dtype_index(x)](c.args, c.blocks, g.data_ptr(), x.data_ptr(),
                                                           qk::device_params<3>({step, sigma, keep}), dx.data_ptr(),
                                                           floats(partial), floats(dstep), floats(dsigma), floats(dkeep),
                                                           qk::current_stream(x)),
            "dropbits_bwd");
  return {dx, dstep, dsigma, dkeep};
}

QK_EXPORT(cuda, dropbits_fwd, "(Tensor x, Tensor step, Tensor sigma, Tensor keep, int bits) -> Tensor")
QK_EXPORT(cuda, dropbits_bwd,
          "(Tensor g, Tensor x, Tensor step, Tensor sigma, Tensor keep, int bits) -> (Tensor, Tensor, Tensor, Tensor)")
}  // namespace
