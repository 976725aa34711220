// lut_linear_int_simd.cpp with the AVX-512 instruction that multiplies bytes and adds four of them.
#include "../common/simd.h"
#if QK_ISA == 512
QK_ALSO("avx512vnni")
#define QK_VNNI
#include "lut_linear_int_rows.h"
QK_NO_MORE
#define QK_LINEAR linear
#else
#include "lut_linear_int.h"
#define QK_LINEAR nullptr
#endif

namespace qk {
extern const PostKernels QK_NAME(lut_linear_int_vnni);
const PostKernels QK_NAME(lut_linear_int_vnni) = {QK_LINEAR};
}  // namespace qk
