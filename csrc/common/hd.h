// Functions that run on the host and on a GPU.
#pragma once
#ifdef __CUDACC__
#define QK_HD __host__ __device__ __forceinline__
#elif defined(QK_SIMT_HOST)
#define QK_HD inline  // the compiler may take its time elsewhere
#else
#define QK_HD inline __attribute__((always_inline))
#endif
// A long function: inline as well, except in the scalar twin of vector code (simd.h), which would take minutes to compile.
#define QK_LONG QK_HD
