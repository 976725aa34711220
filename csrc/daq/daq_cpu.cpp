#include <tuple>
#include "../common/quant_cpu.h"
#include "daq_kernels.h"

namespace {
using qk::Tensor;

Tensor daq_fwd(Tensor x, Tensor lower, Tensor upper, Tensor scale, int64_t n, bool is_signed) {
  return qk::quant_forward<qk::DaqArgs, 3>(qk::daq_kernels(), qk::daq_args(n, is_signed, 0, 0), x, {lower, upper, scale});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> daq_bwd(Tensor g, Tensor x, Tensor lower, Tensor upper, Tensor scale, int64_t n,
                                                   bool is_signed, double amplitude, double base) {
  auto [dx, grads] = qk::quant_backward<qk::DaqArgs, 3>(qk::daq_kernels(), qk::daq_args(n, is_signed, amplitude, base), g, x,
                                                        {lower, upper, scale});
  return {dx, grads[0], grads[1], grads[2]};
}

QK_EXPORT(cpu, daq_fwd, "(Tensor x, Tensor lower, Tensor upper, Tensor scale, int n, bool is_signed) -> Tensor")
QK_EXPORT(cpu, daq_bwd, "(Tensor g, Tensor x, Tensor lower, Tensor upper, Tensor scale, int n, bool is_signed, "
          "float amplitude, float base) -> (Tensor, Tensor, Tensor, Tensor)")
}  // namespace
