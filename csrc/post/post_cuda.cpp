#include <tuple>
#include "../common/quant_cuda.h"
#include "post.h"

namespace qk { extern const QuantCudaKernels<PostArgs, 1> post_cuda; }

namespace {
using qk::Tensor;

Tensor post_fwd(Tensor w, Tensor scale, int64_t count, bool zero) {
  return qk::quant_forward<qk::PostArgs, 1>("post_fwd", qk::post_cuda, qk::post_args(count, zero, true), w, {scale});
}

std::tuple<Tensor, Tensor> post_bwd(Tensor g, Tensor w, Tensor scale, int64_t count, bool zero, bool clip) {
  auto [dw, grads] = qk::quant_backward<qk::PostArgs, 1>("post_bwd", qk::post_cuda, qk::post_args(count, zero, clip), g, w, {scale});
  return {dw, torch::stable::select(grads, 0, 0)};
}

QK_EXPORT(cuda, post_fwd, "(Tensor w, Tensor scale, int count, bool zero) -> Tensor")
QK_EXPORT(cuda, post_bwd, "(Tensor g, Tensor w, Tensor scale, int count, bool zero, bool clip) -> (Tensor, Tensor)")
}  // namespace
