// What the bindings of soft_assign check and read from their parameters.
#pragma once
#include "../common/tensors.h"
#include "soft_assign.h"

namespace qk {

struct SoftAssignParameters {
  const float *levels, *temperature;
  int64_t K;
};

// levels [P, K] and temperature [P].
inline SoftAssignParameters checked_levels(const Tensor& levels, const Tensor& temperature) {
  const auto [q, t] = param_pointers<2>({levels, temperature});
  const int64_t P = temperature.numel(), K = P ? levels.numel() / P : 0;
  STD_TORCH_CHECK(P * K == levels.numel() && K >= 2 && K <= kMaxLevels, "levels must be [P, K], K of 2 to 256, got ",
                  levels.numel(), " values for P=", P);
  return {q, t, K};
}

}  // namespace qk
