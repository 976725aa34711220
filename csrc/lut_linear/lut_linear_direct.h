// lut_linear on a CPU as C calls it: qkernels._C without torch's dispatcher.
#pragma once
#include <cstdint>

namespace qk {

// A contiguous tensor: where it is, and how many values there are; none: data is null.
struct Given {
  const void* data = nullptr;
  int64_t numel = 0;
  int dtype = 0;  // 0 float32, 1 float16, 2 bfloat16, 3 uint8, -1 another, or not contiguous
};

struct LutLinearCall {
  Given x, codes, levels, scale, bias;  // x: [M, k]
  int64_t bits, group_size, n, k;
  void* y;  // [M, n], of x's dtype; null: only say whether the others fit
};

}  // namespace qk

// 1; or 0 where these do not fit each other, or there is no memory.
extern "C" __attribute__((visibility("default"))) int qk_lut_linear(const qk::LutLinearCall*);
