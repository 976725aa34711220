// The device primitives that the kernels use, each with its twin for the host emulator (simt_host.h), and the launch.
#pragma once
#ifdef QK_SIMT_HOST
#include "simt_host.h"
namespace qk {
inline float shuffle_down(float v, int offset) { return simt::exchange(v, simt::lane() + offset < 32 ? simt::lane() + offset : simt::lane()); }
}
#define QK_LAUNCH(kernel, grid, threads, stream, ...) simt::launch(grid, threads, [=] { kernel(__VA_ARGS__); })
#else
#include <cuda_runtime.h>
namespace qk {
__device__ __forceinline__ float shuffle_down(float v, int offset) { return __shfl_down_sync(0xffffffffu, v, offset); }
}
#define QK_LAUNCH(kernel, grid, threads, stream, ...) kernel<<<grid, threads, 0, stream>>>(__VA_ARGS__)
#endif
