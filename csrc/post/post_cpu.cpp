#include <tuple>
#include "../common/quant_cpu.h"
#include "post_kernels.h"

namespace {
using qk::Tensor;

Tensor post_fwd(Tensor w, Tensor scale, int64_t count, bool zero) {
  return qk::quant_forward<qk::PostArgs, 1>(qk::post_kernels(), qk::post_args(count, zero, true), w, {scale});
}

std::tuple<Tensor, Tensor> post_bwd(Tensor g, Tensor w, Tensor scale, int64_t count, bool zero, bool clip) {
  auto [dw, grads] = qk::quant_backward<qk::PostArgs, 1>(qk::post_kernels(), qk::post_args(count, zero, clip), g, w, {scale});
  return {dw, grads[0]};
}

QK_EXPORT(cpu, post_fwd, "(Tensor w, Tensor scale, int count, bool zero) -> Tensor")
QK_EXPORT(cpu, post_bwd, "(Tensor g, Tensor w, Tensor scale, int count, bool zero, bool clip) -> (Tensor, Tensor)")
}  // namespace
