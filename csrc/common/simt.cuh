// The device primitives that the kernels use, each with its twin for the host emulator (simt_host.h), and the launch.
#pragma once
#include <cstddef>
namespace qk {
struct Grid { unsigned x, y, z; };
}
#ifdef QK_SIMT_HOST
#include "simt_host.h"
namespace qk {
inline float shuffle_down(float v, int offset) { return simt::exchange(v, simt::lane() + offset < 32 ? simt::lane() + offset : simt::lane()); }
inline unsigned char* dynamic_shared() { return simt::shared.get(); }
}
#define QK_LAUNCH(kernel, grid, threads, stream, ...) simt::launch({grid, 1, 1}, threads, 0, [=] { kernel(__VA_ARGS__); })
namespace qk {
template <class Args>
cudaError_t launch_shared(void (*kernel)(Args), Grid grid, unsigned threads, size_t shared, bool, cudaStream_t, const Args& args) {
  simt::launch({grid.x, grid.y, grid.z}, threads, shared, [=] { kernel(args); });
  return cudaSuccess;
}
}
#else
#include <cuda_runtime.h>
namespace qk {
__device__ __forceinline__ float shuffle_down(float v, int offset) { return __shfl_down_sync(0xffffffffu, v, offset); }
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char bytes[];
  return bytes;
}
}
#define QK_LAUNCH(kernel, grid, threads, stream, ...) kernel<<<grid, threads, 0, stream>>>(__VA_ARGS__)
namespace qk {
// With `shared` bytes of dynamic shared memory. early: on sm_90, the kernel may start before the one in front of it in the
// stream has ended (wait_for_previous_grid in ptx.cuh).
template <class Args>
cudaError_t launch_shared(void (*kernel)(Args), Grid grid, unsigned threads, size_t shared, bool early, cudaStream_t stream, const Args& args) {
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
  if (e != cudaSuccess) return e;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid.x, grid.y, grid.z);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  cudaLaunchAttribute serialization{};
  serialization.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  serialization.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &serialization;
  config.numAttrs = early;
  return cudaLaunchKernelEx(&config, kernel, args);
}
}
#endif
