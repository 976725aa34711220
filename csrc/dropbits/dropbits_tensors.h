// What the bindings of dropbits check and read from their tensors.
#pragma once
#include "../common/tensors.h"
#include "dropbits.h"

namespace qk {

struct DropBitsCall {
  DropBitsArgs args;
  Blocks blocks;
  std::array<const float*, 3> params;  // step [P], sigma [P], the gates [levels - 1]
};

inline DropBitsCall checked_dropbits(const Tensor& x, const Tensor& step, const Tensor& sigma, const Tensor& keep, int64_t bits) {
  STD_TORCH_CHECK(bits >= 2 && bits <= 8, "bits must be between 2 and 8, got ", bits);
  const int64_t top = (int64_t(1) << (bits - 1)) - 1;
  STD_TORCH_CHECK(keep.numel() == bits - 1 || keep.numel() == top, "keep must have ", bits - 1, " or ", top, " values, got ",
                  keep.numel());
  const auto pointers = param_pointers<3>({step, sigma, keep});
  return {{float(top), int(keep.numel()) + 1, keep.numel() == bits - 1}, checked_blocks<2>(x, {step, sigma}), pointers};
}

}  // namespace qk
