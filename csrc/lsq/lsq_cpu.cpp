#include <tuple>
#include "../common/quant_cpu.h"
#include "lsq_kernels.h"

namespace {
using qk::Tensor;

Tensor lsq_fwd(Tensor x, Tensor step, int64_t qmin, int64_t qmax) {
  return qk::quant_forward<qk::LsqArgs, 1>(qk::lsq_kernels(), {float(qmin), float(qmax)}, x, {step});
}

std::tuple<Tensor, Tensor> lsq_bwd(Tensor g, Tensor x, Tensor step, int64_t qmin, int64_t qmax) {
  auto [dx, grads] = qk::quant_backward<qk::LsqArgs, 1>(qk::lsq_kernels(), {float(qmin), float(qmax)}, g, x, {step});
  return {dx, grads[0]};
}

QK_EXPORT(cpu, lsq_fwd, "(Tensor x, Tensor step, int qmin, int qmax) -> Tensor")
QK_EXPORT(cpu, lsq_bwd, "(Tensor g, Tensor x, Tensor step, int qmin, int qmax) -> (Tensor, Tensor)")
}  // namespace
