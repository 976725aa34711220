#include "../common/quant_cuda.h"
#include "channel_error_cuda_kernels.h"
#include "channel_error_tensors.h"

namespace qk { extern const ChannelErrorCudaKernels channel_error_cuda; }

namespace {
using qk::Tensor;

Tensor channel_error(Tensor x, Tensor step, int64_t qmin, int64_t qmax, int64_t dim) {
  const auto [outer, C, inner, s] = qk::checked_channels(x, step, qmin, qmax, dim);
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor sums = torch::stable::new_zeros(step, {3, C});
  if (x.numel() == 0) return sums;
  const qk::ChannelParts p = qk::channel_error_cuda.parts(outer, C, inner);
  Tensor partial = torch::stable::new_zeros(step, {p.slots * C * p.parts * 3});
  qk::check(qk::channel_error_cuda.run[qk::dtype_index(x)](outer, C, inner, float(qmin), float(qmax), s, x.data_ptr(),
                                                           static_cast<float*>(partial.data_ptr()),
                                                           static_cast<float*>(sums.data_ptr()), qk::current_stream(x)),
            "channel_error");
  return sums;
}

QK_EXPORT(cuda, channel_error, "(Tensor x, Tensor step, int qmin, int qmax, int dim) -> Tensor")
}  // namespace
