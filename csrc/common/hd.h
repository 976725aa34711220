// Functions that run on the host and on a GPU.
#pragma once
#ifdef __CUDACC__
#define QK_HD __host__ __device__ __forceinline__
#else
#define QK_HD inline __attribute__((always_inline))
#endif
