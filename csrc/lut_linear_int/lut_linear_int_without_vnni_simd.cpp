// lut_linear_int_simd.cpp for AVX-512 without VNNI.
#if QK_ISA == 512
#define QK_WITHOUT_VNNI
#include "lut_linear_int_simd.cpp"
#endif
