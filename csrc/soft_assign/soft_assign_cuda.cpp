#include <tuple>
#include "../common/quant_cuda.h"
#include "soft_assign_cuda_kernels.h"
#include "soft_assign_tensors.h"

namespace qk { extern const SoftAssignCudaKernels soft_assign_cuda; }

namespace {
using qk::Tensor;

Tensor soft_assign_fwd(Tensor x, Tensor levels, Tensor temperature, bool hard) {
  const auto [q, t, K] = qk::checked_levels(levels, temperature);
  const qk::Blocks b = qk::checked_blocks<1>(x, {temperature});
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor y = torch::stable::empty_like(x);
  qk::check(qk::soft_assign_cuda.forward[qk::dtype_index(x)](b, K, hard, x.data_ptr(), q, t, y.data_ptr(), qk::current_stream(x)),
            "soft_assign_fwd");
  return y;
}

std::tuple<Tensor, Tensor, Tensor> soft_assign_bwd(Tensor g, Tensor x, Tensor levels, Tensor temperature) {
  qk::check_gradient(g, x);
  const auto [q, t, K] = qk::checked_levels(levels, temperature);
  const qk::Blocks b = qk::checked_blocks<1>(x, {temperature});
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor dx = torch::stable::empty_like(x), partial = torch::stable::new_zeros(levels, {b.jobs * (K + 1)});
  Tensor dlevels = torch::stable::new_zeros(levels, levels.sizes()), dt = torch::stable::new_zeros(temperature, temperature.sizes());
  qk::check(qk::soft_assign_cuda.backward[qk::dtype_index(x)](
                b, K, g.data_ptr(), x.data_ptr(), q, t, dx.data_ptr(), static_cast<float*>(partial.data_ptr()),
                static_cast<float*>(dlevels.data_ptr()), static_cast<float*>(dt.data_ptr()), qk::current_stream(x)),
            "soft_assign_bwd");
  return {dx, dlevels, dt};
}

QK_EXPORT(cuda, soft_assign_fwd, "(Tensor x, Tensor levels, Tensor temperature, bool hard) -> Tensor")
QK_EXPORT(cuda, soft_assign_bwd, "(Tensor g, Tensor x, Tensor levels, Tensor temperature) -> (Tensor, Tensor, Tensor)")
}  // namespace
