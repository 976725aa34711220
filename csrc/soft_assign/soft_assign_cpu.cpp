#include <tuple>
#include "../common/quant_cpu.h"
#include "soft_assign_kernels.h"
#include "soft_assign_tensors.h"

namespace {
using qk::Tensor;

// An element costs an exponential a level: fewer of them are worth a thread.
int64_t soft_grain(const qk::Blocks& b) { return std::max<int64_t>(1, qk::grain(b) / 8); }

Tensor soft_assign_fwd(Tensor x, Tensor levels, Tensor temperature, bool hard) {
  const auto o = qk::checked_levels(levels, temperature);
  const qk::Blocks b = qk::checked_blocks<1>(x, {temperature});
  Tensor y = torch::stable::empty_like(x);
  const auto kernel = qk::soft_assign_kernels().forward[qk::dtype_index(x)];
  const void* in = x.data_ptr();
  void* out = y.data_ptr();
  torch::stable::parallel_for(0, b.jobs, soft_grain(b), [&](int64_t begin, int64_t end) {
    kernel(b, o.K, hard, begin, end, in, o.levels, o.temperature, out);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> soft_assign_bwd(Tensor g, Tensor x, Tensor levels, Tensor temperature) {
  qk::check_gradient(g, x);
  const auto o = qk::checked_levels(levels, temperature);
  const qk::Blocks b = qk::checked_blocks<1>(x, {temperature});
  Tensor dx = torch::stable::empty_like(x), dlevels = torch::stable::empty_like(levels);
  Tensor dtemperature = torch::stable::empty_like(temperature);
  const auto kernel = qk::soft_assign_kernels().backward[qk::dtype_index(x)];
  const int64_t width = o.K + 1;
  std::vector<double> partial(b.jobs * width);
  const void *gi = g.data_ptr(), *xi = x.data_ptr();
  void* out = dx.data_ptr();
  torch::stable::parallel_for(0, b.jobs, soft_grain(b), [&](int64_t begin, int64_t end) {
    kernel(b, o.K, begin, end, gi, xi, o.levels, o.temperature, out, partial.data());
  });
  float *dq = static_cast<float*>(dlevels.data_ptr()), *dt = static_cast<float*>(dtemperature.data_ptr());
  for (int64_t p = 0; p < temperature.numel(); p++)
    for (int64_t k = 0; k < width; k++) {
      double total = 0;
      for (int64_t c = 0; c < b.chunks; c++) total += partial[(p * b.chunks + c) * width + k];
      (k < o.K ? dq[p * o.K + k] : dt[p]) = static_cast<float>(total);
    }
  return {dx, dlevels, dtemperature};
}

QK_EXPORT(cpu, soft_assign_fwd, "(Tensor x, Tensor levels, Tensor temperature, bool hard) -> Tensor")
QK_EXPORT(cpu, soft_assign_bwd, "(Tensor g, Tensor x, Tensor levels, Tensor temperature) -> (Tensor, Tensor, Tensor)")
}  // namespace
