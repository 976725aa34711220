// An activation quantizer and the product with a packed weight behind it, in one call: the bits are those of the two. What it saves
// is a way through Python and the dispatcher, which for one row takes as long as a quarter of the product.
#include "../common/quant_cpu.h"
#include "../daq/daq_kernels.h"
#include "../lsq/lsq_kernels.h"
#include "lut_linear_cpu.h"

namespace {

using qk::Tensor;

Tensor lut_linear_lsq(Tensor x, Tensor step, int64_t qmin, int64_t qmax, Tensor codes, Tensor levels, Tensor scale,
                      std::optional<Tensor> bias, int64_t bits, int64_t group_size, int64_t n, int64_t k) {
  const Tensor q = qk::quant_forward<qk::LsqArgs, 1>(qk::lsq_kernels(), {float(qmin), float(qmax)}, x, {step});
  return qk::lut_linear(q, codes, levels, scale, bias, bits, group_size, n, k);
}

Tensor lut_linear_daq(Tensor x, Tensor lower, Tensor upper, Tensor size, int64_t top, bool is_signed, Tensor codes, Tensor levels,
                      Tensor scale, std::optional<Tensor> bias, int64_t bits, int64_t group_size, int64_t n, int64_t k) {
  const Tensor q = qk::quant_forward<qk::DaqArgs, 3>(qk::daq_kernels(), qk::daq_args(top, is_signed, 0, 0), x, {lower, upper, size});
  return qk::lut_linear(q, codes, levels, scale, bias, bits, group_size, n, k);
}

QK_EXPORT(cpu, lut_linear_lsq,
          "(Tensor x, Tensor step, int qmin, int qmax, Tensor codes, Tensor levels, Tensor scale, Tensor? bias, int bits, "
          "int group_size, int n, int k) -> Tensor")
QK_EXPORT(cpu, lut_linear_daq,
          "(Tensor x, Tensor lower, Tensor upper, Tensor size, int top, bool is_signed, Tensor codes, Tensor levels, Tensor scale, "
          "Tensor? bias, int bits, int group_size, int n, int k) -> Tensor")

}  // namespace
