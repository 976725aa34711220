// What the bindings of channel_error check and read from their tensors.
#pragma once
#include "../common/tensors.h"
#include "channel_error.h"

namespace qk {

struct Channels {
  int64_t outer, C, inner;  // x [outer, C, inner]
  const float* step;        // one value
};

inline Channels checked_channels(const Tensor& x, const Tensor& step, int64_t qmin, int64_t qmax, int64_t dim) {
  const auto [s] = param_pointers<1>({step});
  STD_TORCH_CHECK(step.numel() == 1, "step must have 1 value, got ", step.numel());
  STD_TORCH_CHECK(x.is_contiguous(), "x must be contiguous, got strides that are not");
  check_memory(x, "x");
  STD_TORCH_CHECK(dim >= 0 && dim < x.dim(), "dim must be a dimension of x, got ", dim);
  STD_TORCH_CHECK(qmin <= 0 && qmax >= 0, "qmin and qmax must have 0 between them, got ", qmin, " and ", qmax);
  Channels c{1, x.size(dim), 1, s};
  for (int64_t d = 0; d < dim; d++) c.outer *= x.size(d);
  for (int64_t d = dim + 1; d < x.dim(); d++) c.inner *= x.size(d);
  return c;
}

}  // namespace qk
