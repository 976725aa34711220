// lut_linear on a CPU as C calls it: qkernels._C without torch's dispatcher.
#pragma once
#include <cstdint>

extern "C" {

// A contiguous tensor; none: data is null.
struct qk_values {
  const void* data;
  int64_t numel;
  int dtype;  // 0 float32, 1 float16, 2 bfloat16, 3 uint8
};

struct qk_lut_linear_args {
  qk_values x, codes, levels, scale, bias;  // x: [M, k]
  int64_t bits, group_size, n, k;
  void* y;  // [M, n], of x's dtype; null: only say whether the others fit
};

// 1; or 0 where these do not fit each other, or there is no memory.
__attribute__((visibility("default"))) int qk_lut_linear(const qk_lut_linear_args*);

}
