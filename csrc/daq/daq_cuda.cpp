#include <tuple>
#include "../common/quant_cuda.h"
#include "daq.h"

namespace qk { extern const QuantCudaKernels<DaqArgs, 3> daq_cuda; }

namespace {
using qk::Tensor;

Tensor daq_fwd(Tensor x, Tensor lower, Tensor upper, Tensor scale, int64_t n, bool is_signed) {
  return qk::quant_forward<qk::DaqArgs, 3>("daq_fwd", qk::daq_cuda, qk::daq_args(n, is_signed, 0, 0), x, {lower, upper, scale});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> daq_bwd(Tensor g, Tensor x, Tensor lower, Tensor upper, Tensor scale, int64_t n,
                                                   bool is_signed, double amplitude, double base) {
  auto [dx, grads] = qk::quant_backward<qk::DaqArgs, 3>("daq_bwd", qk::daq_cuda, qk::daq_args(n, is_signed, amplitude, base), g,
                                                        x, {lower, upper, scale});
  using torch::stable::select;
  return {dx, select(grads, 0, 0), select(grads, 0, 1), select(grads, 0, 2)};
}

QK_EXPORT(cuda, daq_fwd, "(Tensor x, Tensor lower, Tensor upper, Tensor scale, int n, bool is_signed) -> Tensor")
QK_EXPORT(cuda, daq_bwd, "(Tensor g, Tensor x, Tensor lower, Tensor upper, Tensor scale, int n, bool is_signed, "
          "float amplitude, float base) -> (Tensor, Tensor, Tensor, Tensor)")
}  // namespace
