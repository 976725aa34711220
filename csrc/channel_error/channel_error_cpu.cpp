#include <algorithm>
#include <limits>
#include <vector>
#include "../common/quant_cpu.h"
#include "channel_error_kernels.h"
#include "channel_error_tensors.h"

namespace {
using qk::Tensor;

// [3, C]: the sums over all of x but `dim`, of which C is the size. Partial sums of fixed pieces, added in their order.
Tensor channel_error(Tensor x, Tensor step, int64_t qmin, int64_t qmax, int64_t dim) {
  const auto [outer, C, inner, s] = qk::checked_channels(x, step, qmin, qmax, dim);
  Tensor sums = torch::stable::new_zeros(step, {3, C});
  if (x.numel() == 0) return sums;
  const qk::ChannelErrorArgs args{float(qmin), float(qmax), *s > 0 ? *s : std::numeric_limits<float>::quiet_NaN()};
  const auto& kernels = qk::channel_error_kernels();
  const int dtype = qk::dtype_index(x);
  const void* in = x.data_ptr();
  std::vector<double> total(3 * C);
  if (inner >= qk::kLongRun) {
    const qk::Blocks b = qk::make_blocks(outer * C, x.numel());
    std::vector<double> partial(b.jobs * 3);
    torch::stable::parallel_for(0, b.jobs, qk::grain(b), [&](int64_t begin, int64_t end) {
      kernels.runs[dtype](args, b, begin, end, in, partial.data());
    });
    for (int64_t job = 0; job < b.jobs; job++)
      for (int64_t k = 0; k < 3; k++) total[k * C + job / b.chunks % C] += partial[job * 3 + k];
  } else {
    const int64_t width = C * inner, group = std::max<int64_t>(64, qk::kChunk / width), groups = (outer + group - 1) / group;
    std::vector<double> partial(groups * 3 * width);
    torch::stable::parallel_for(0, groups, std::max<int64_t>(1, 16384 / (group * width)), [&, outer = outer](int64_t begin, int64_t end) {
      kernels.columns[dtype](args, outer, width, group, begin, end, in, partial.data());
    });
    for (int64_t j = 0; j < groups; j++)
      for (int64_t k = 0; k < 3; k++)
        for (int64_t i = 0; i < width; i++) total[k * C + i / inner] += partial[(j * 3 + k) * width + i];
  }
  float* out = static_cast<float*>(sums.data_ptr());
  for (int64_t i = 0; i < 3 * C; i++) out[i] = static_cast<float>(total[i]);
  return sums;
}

QK_EXPORT(cpu, channel_error, "(Tensor x, Tensor step, int qmin, int qmax, int dim) -> Tensor")
}  // namespace
