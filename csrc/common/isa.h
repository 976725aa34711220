// Which instruction set the CPU kernels use: the best this machine has, or another by QKERNELS_ISA or the op
// `isa`. avx512bf16 and amx are avx512 with the kernels of these extensions.
#pragma once

namespace qk {

// kAmx has AVX-512 VBMI and GFNI too.
enum Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };
Isa isa();
bool has_vnni();  // whether the processor has AVX-512 VNNI: sums of products of bytes
bool has_vbmi();  // and its tables of bytes
bool has_gfni();  // and products of bits
// AMD's, as timed on Zen 4: where there are products of two pairs of bfloat16, they take no longer than those of float32; those of bits
// take the place of those of bytes, as shifts do not. On Zen 3, without AVX-512, a permutation of floats takes as long as two of bytes.
bool is_amd();

// The implementation for isa(), from one per instruction set.
template <class T>
const T& pick(const T& scalar, const T& avx2, const T& avx512) {
  return isa() >= kAvx512 ? avx512 : isa() == kAvx2 ? avx2 : scalar;
}

}  // namespace qk

// Declares the tables that <op>_simd.cpp defines once per instruction set, and NAME##_kernels() that picks one.
#ifdef __x86_64__
#define QK_DECLARE_KERNELS(TABLE, NAME)                         \
  namespace qk {                                                \
  extern const TABLE NAME##_scalar, NAME##_avx2, NAME##_avx512; \
  inline const TABLE& NAME##_kernels() { return pick(NAME##_scalar, NAME##_avx2, NAME##_avx512); } \
  }
#else
#define QK_DECLARE_KERNELS(TABLE, NAME)                         \
  namespace qk {                                                \
  extern const TABLE NAME##_scalar;                             \
  inline const TABLE& NAME##_kernels() { return NAME##_scalar; } \
  }
#endif
