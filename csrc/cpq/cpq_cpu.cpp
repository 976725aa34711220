#include <tuple>
#include "../common/quant_cpu.h"
#include "cpq_kernels.h"

namespace {
using qk::Tensor;

const qk::QuantKernels<qk::CpqArgs>& kernels(bool full, bool truncate) {
  if (full) return truncate ? qk::cpq_full_truncated_kernels() : qk::cpq_full_kernels();
  return truncate ? qk::cpq_argmax_truncated_kernels() : qk::cpq_argmax_kernels();
}

Tensor cpq_fwd(Tensor x, Tensor step, Tensor sigma, int64_t qmin, int64_t qmax) {
  return qk::quant_forward<qk::CpqArgs, 2>(kernels(false, false), {float(qmin), float(qmax)}, x, {step, sigma});
}

std::tuple<Tensor, Tensor, Tensor> cpq_bwd(Tensor g, Tensor x, Tensor step, Tensor sigma, int64_t qmin, int64_t qmax, bool full,
                                           bool truncate) {
  auto [dx, grads] =
      qk::quant_backward<qk::CpqArgs, 2>(kernels(full, truncate), {float(qmin), float(qmax)}, g, x, {step, sigma});
  return {dx, grads[0], grads[1]};
}

QK_EXPORT(cpu, cpq_fwd, "(Tensor x, Tensor step, Tensor sigma, int qmin, int qmax) -> Tensor")
QK_EXPORT(cpu, cpq_bwd,
          "(Tensor g, Tensor x, Tensor step, Tensor sigma, int qmin, int qmax, bool full, bool truncate) -> (Tensor, Tensor, Tensor)")
}  // namespace
