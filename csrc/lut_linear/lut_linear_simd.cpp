// Rows of x times a packed weight on the CPU, and the weight as floats: see lut_rows.h.
#include "lut_rows.h"

namespace {

void dequantize(const Packed& w, int64_t begin, int64_t end, float* out) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    dequantize_stripes<kind.bits, typename decltype(kind)::Levels>(w, begin, end, out);
  });
}

void linear(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias, Output y,
            float* sums) {
  for_kind(w, [&](auto kind) QK_INLINE_LAMBDA {
    linear_stripes<kind.bits, typename decltype(kind)::Levels>(w, begin, end, x, M, T, bias, y, sums);
  });
}

}  // namespace

QK_KERNELS(LutKernels, lut, {dequantize, linear, kTile, kPair})
