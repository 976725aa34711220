#include <tuple>
#include "../common/quant_cuda.h"
#include "lsq.h"

namespace qk { extern const QuantCudaKernels<LsqArgs, 1> lsq_cuda; }

namespace {
using qk::Tensor;

Tensor lsq_fwd(Tensor x, Tensor step, int64_t qmin, int64_t qmax) {
  return qk::quant_forward<qk::LsqArgs, 1>("lsq_fwd", qk::lsq_cuda, {float(qmin), float(qmax)}, x, {step});
}

std::tuple<Tensor, Tensor> lsq_bwd(Tensor g, Tensor x, Tensor step, int64_t qmin, int64_t qmax) {
  auto [dx, grads] = qk::quant_backward<qk::LsqArgs, 1>("lsq_bwd", qk::lsq_cuda, {float(qmin), float(qmax)}, g, x, {step});
  return {dx, torch::stable::select(grads, 0, 0)};
}

QK_EXPORT(cuda, lsq_fwd, "(Tensor x, Tensor step, int qmin, int qmax) -> Tensor")
QK_EXPORT(cuda, lsq_bwd, "(Tensor g, Tensor x, Tensor step, int qmin, int qmax) -> (Tensor, Tensor)")
}  // namespace
