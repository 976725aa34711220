#include <tuple>
#include "../common/quant_cuda.h"
#include "cpq.h"

namespace qk {
extern const QuantCudaKernels<CpqArgs, 2> cpq_argmax_cuda, cpq_argmax_truncated_cuda, cpq_full_cuda, cpq_full_truncated_cuda;
}

namespace {
using qk::Tensor;

const qk::QuantCudaKernels<qk::CpqArgs, 2>& kernels(bool full, bool truncate) {
  if (full) return truncate ? qk::cpq_full_truncated_cuda : qk::cpq_full_cuda;
  return truncate ? qk::cpq_argmax_truncated_cuda : qk::cpq_argmax_cuda;
}

Tensor cpq_fwd(Tensor x, Tensor step, Tensor sigma, int64_t qmin, int64_t qmax) {
  return qk::quant_forward<qk::CpqArgs, 2>("cpq_fwd", kernels(false, false), {float(qmin), float(qmax)}, x, {step, sigma});
}

std::tuple<Tensor, Tensor, Tensor> cpq_bwd(Tensor g, Tensor x, Tensor step, Tensor sigma, int64_t qmin, int64_t qmax, bool full,
                                           bool truncate) {
  auto [dx, grads] = qk::quant_backward<qk::CpqArgs, 2>("cpq_bwd", kernels(full, truncate), {float(qmin), float(qmax)}, g, x,
                                                        {step, sigma});
  return {dx, torch::stable::select(grads, 0, 0), torch::stable::select(grads, 0, 1)};
}

QK_EXPORT(cuda, cpq_fwd, "(Tensor x, Tensor step, Tensor sigma, int qmin, int qmax) -> Tensor")
QK_EXPORT(cuda, cpq_bwd,
          "(Tensor g, Tensor x, Tensor step, Tensor sigma, int qmin, int qmax, bool full, bool truncate) -> (Tensor, Tensor, Tensor)")
}  // namespace
