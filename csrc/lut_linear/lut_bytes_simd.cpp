// The kernels of lut_linear_simd.cpp and lut_alone_simd.cpp for 8 bits whose levels are not evenly spaced, with tables of bytes.
#include "../common/simd.h"
#include "lut_linear.h"

#if QK_ISA == 512
QK_ALSO("avx512vbmi")
#include "lut_alone.h"
#include "lut_bytes.h"
#include "lut_rows.h"

namespace {

template <class Body> QK_IN void for_levels(const Packed& w, Body&& body) {
  if (w.narrow) body(Kind<8, Bytes<true>>{});
  else body(Kind<8, Bytes<false>>{});
}

void bytes_dequantize(const Packed& w, int64_t begin, int64_t end, float* out) { dequantize_stripes<8, Table<8>>(w, begin, end, out); }

void bytes_linear(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t T, const float* bias, Output y,
                  float* sums) {
  for_levels(w, [&](auto kind) QK_INLINE_LAMBDA {
    linear_stripes<8, typename decltype(kind)::Levels>(w, begin, end, x, M, T, bias, y, sums);
  });
}

using Row = Alone<8, Table<8>>;  // what x becomes is no matter of the table

void bytes_alone(const Packed& w, int64_t begin, int64_t end, const float* x, const int32_t* groups, const float* bias, Output y) {
  for_levels(w, [&](auto kind) QK_INLINE_LAMBDA {
    Alone<8, typename decltype(kind)::Levels>::linear(w, begin, end, x, groups, bias, y);
  });
}

}  // namespace
QK_NO_MORE
QK_KERNELS(LutKernels, lut_bytes, {bytes_dequantize, bytes_linear, kTile, kPair})
QK_KERNELS(LutAlone, lut_bytes_alone, {Row::room, Row::spread, bytes_alone})
#endif
