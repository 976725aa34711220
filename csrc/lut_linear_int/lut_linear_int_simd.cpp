// Which kernel of lut_linear_int_rows.h is for which weight, and how many rows of x.
#include "../common/simd.h"
#if QK_ISA == 512 && !defined(QK_WITHOUT_VNNI)
QK_ALSO("avx512vnni")
#endif
#include "lut_linear_int_rows.h"

namespace {

using Direct = void (*)(const Packed&, const ByteLevels&, int64_t, int64_t, const ByteRows&, const float*, float*);
template <int bits, int tables, bool x_signed, bool wide, int M> Direct direct_of(int64_t rows) {
  if constexpr (M == 0) return nullptr;
  else return rows == M ? direct<bits, tables, x_signed, wide, M> : direct_of<bits, tables, x_signed, wide, M - 1>(rows);
}

void linear(const Packed& w, const ByteLevels& levels, int64_t begin, int64_t end, const ByteRows& x, const float* bias, float* y,
            uint8_t* scratch) {
  for_bytes(w, levels, [&](auto of) {
    constexpr int bits = of.kBits, tables = of.kTables;
    constexpr bool wide = kWide<bits, tables>;
    const Direct few = levels.x_signed ? direct_of<bits, tables, true, wide, kDirect>(x.M) : direct_of<bits, tables, false, wide, kDirect>(x.M);
    if (few) few(w, levels, begin, end, x, bias, y);
    else shared<bits, tables, wide>(w, levels, begin, end, x, bias, y, scratch);
  });
}

}  // namespace
#ifdef QK_WITHOUT_VNNI
QK_KERNELS(LutInt, lut_linear_int_without_vnni, {linear, kMost})
#else
#if QK_ISA == 512
QK_NO_MORE
#endif
QK_KERNELS(LutInt, lut_linear_int, {linear, kMost})
#endif
