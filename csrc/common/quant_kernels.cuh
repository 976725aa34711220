// The CUDA loops of every block-wise quantizer, torch-free: the twin of quant_simd.h. One thread block works on one job
// (blocks.h) at a time. A parameter's gradient is one partial sum a job, then one fixed-order sum a block of x: no atomics.
#pragma once
#include <cstdint>
#include "simt.cuh"
#include "blocks.h"
#include "maths.h"
#include "pack.cuh"
#include "quant_cuda_kernels.h"

namespace qk {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// A team is the threads that work on one job: a thread block, or a warp where blocks of x are short (kTeam of 256 or 32).
// Which thread adds which elements does not depend on alignment, so that neither does any bit.
template <template <class> class Op, class T, int kTeam>
__global__ void __launch_bounds__(kThreads) quant_forward_kernel(
    typename Op<float>::Args args, Blocks b,
    const T* __restrict__ x,              // [P, L]
    Params<Op<float>::kParams> params,
    T* __restrict__ y) {                  // [P, L]
  constexpr int kTeams = kThreads / kTeam;
  for (int64_t job = blockIdx.x * int64_t(kTeams) + threadIdx.x / kTeam; job < b.jobs; job += gridDim.x * int64_t(kTeams)) {
    const auto [p, base, n] = job_of(b, job);
    const bool aligned = aligned_to_packs(x + base, y + base);
    const Op<float> op(args, params.p, p);
    for (int i = threadIdx.x % kTeam * kPack<T>; i < n; i += kTeam * kPack<T>) {
      float v[kPack<T>];
      load_pack(x + base + i, aligned, n - i, v);
      for (float& e : v) e = op.value(e);
      store_pack(v, aligned, n - i, y + base + i);
    }
  }
}

// The sum over the warp, in a fixed order, valid in its first lane.
__device__ __forceinline__ float warp_sum(float v) {
  for (int offset = 16; offset; offset /= 2) v += shuffle_down(v, offset);
  return v;
}

// The sum over the thread block, in a fixed order, valid in thread 0. `shared` has kWarps floats.
__device__ __forceinline__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  float total = 0;
  if (threadIdx.x == 0)
    for (int w = 0; w < kWarps; w++) total += shared[w];
  __syncthreads();  // shared may be written again
  return total;
}

template <template <class> class Op, class T, int kTeam>
__global__ void __launch_bounds__(kThreads) quant_backward_kernel(
    typename Op<float>::Args args, Blocks b,
    const T* __restrict__ g,              // [P, L]
    const T* __restrict__ x,              // [P, L]
    Params<Op<float>::kParams> params,
    T* __restrict__ dx,                   // [P, L]
    float* __restrict__ partial,          // [jobs, kParams], of blocks of x that are several jobs
    float* __restrict__ grads) {          // [kParams, P], of the others
  constexpr int kParams = Op<float>::kParams, kTeams = kThreads / kTeam;
  __shared__ float warp_sums[kWarps];
  for (int64_t job = blockIdx.x * int64_t(kTeams) + threadIdx.x / kTeam; job < b.jobs; job += gridDim.x * int64_t(kTeams)) {
    const auto [p, base, n] = job_of(b, job);
    const bool aligned = aligned_to_packs(g + base, x + base, dx + base);
    const Op<float> op(args, params.p, p);
    float sums[kParams] = {}, terms[kParams];
    for (int i = threadIdx.x % kTeam * kPack<T>; i < n; i += kTeam * kPack<T>) {
      const int there = int(n) - i;
      float gi[kPack<T>], v[kPack<T>];
      load_pack(g + base + i, aligned, n - i, gi);
      load_pack(x + base + i, aligned, n - i, v);
      for (int j = 0; j < kPack<T>; j++) {
        v[j] = op.grad(gi[j], v[j], terms);
        for (int k = 0; k < kParams; k++) sums[k] += j < there ? terms[k] : 0.0f;  // 0 times what overflowed is NaN
      }
      store_pack(v, aligned, n - i, dx + base + i);
    }
    for (int k = 0; k < kParams; k++) {
      const float total = kTeam == 32 ? warp_sum(sums[k]) : block_sum(sums[k], warp_sums);
      if (threadIdx.x % kTeam == 0) (b.chunks == 1 ? grads[k * b.jobs + p] : partial[job * kParams + k]) = total;
    }
  }
}

// grads [kParams, P] from partial [P, chunks, kParams]; one thread block a value.
template <int kParams>
__global__ void __launch_bounds__(kThreads) quant_reduce_kernel(
    Blocks b, const float* __restrict__ partial, float* __restrict__ grads) {
  __shared__ float warp_sums[kWarps];
  const int64_t P = b.jobs / b.chunks;
  for (int64_t v = blockIdx.x; v < P * kParams; v += gridDim.x) {
    const int64_t p = v / kParams, k = v % kParams;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < b.chunks; c += kThreads) sum += partial[(p * b.chunks + c) * kParams + k];
    const float total = block_sum(sum, warp_sums);
    if (threadIdx.x == 0) grads[k * P + p] = total;
  }
}

inline unsigned grid(int64_t jobs) { return unsigned(jobs < 65535 * 16 ? jobs : 65535 * 16); }

constexpr int64_t kShort = 2048;  // elements of a block of x up to which a warp works on it alone
constexpr int kWarp = 32;

template <template <class> class Op, class T>
cudaError_t quant_forward(const typename Op<float>::Args& args, const Blocks& b, const void* x,
                          Params<Op<float>::kParams> params, void* y, cudaStream_t stream) {
  if (b.jobs == 0) return cudaSuccess;
  const T* in = static_cast<const T*>(x);
  T* out = static_cast<T*>(y);
  if (b.L <= kShort) {
    QK_LAUNCH((quant_forward_kernel<Op, T, kWarp>), grid((b.jobs + kWarps - 1) / kWarps), kThreads, stream, args, b, in, params, out);
  } else {
    QK_LAUNCH((quant_forward_kernel<Op, T, kThreads>), grid(b.jobs), kThreads, stream, args, b, in, params, out);
  }
  return cudaGetLastError();
}

template <template <class> class Op, class T>
cudaError_t quant_backward(const typename Op<float>::Args& args, const Blocks& b, const void* g, const void* x,
                           Params<Op<float>::kParams> params, void* dx, float* partial, float* grads, cudaStream_t stream) {
  constexpr int kParams = Op<float>::kParams;
  if (b.jobs == 0) return cudaSuccess;  // the caller's grads are zero
  const T *gi = static_cast<const T*>(g), *in = static_cast<const T*>(x);
  T* out = static_cast<T*>(dx);
  if (b.L <= kShort) {
    QK_LAUNCH((quant_backward_kernel<Op, T, kWarp>), grid((b.jobs + kWarps - 1) / kWarps), kThreads, stream, args, b, gi, in,
              params, out, partial, grads);
  } else {
    QK_LAUNCH((quant_backward_kernel<Op, T, kThreads>), grid(b.jobs), kThreads, stream, args, b, gi, in, params, out, partial, grads);
  }
  if (b.chunks > 1) {
    QK_LAUNCH((quant_reduce_kernel<kParams>), grid(b.jobs / b.chunks * kParams), kThreads, stream, b, partial, grads);
  }
  return cudaGetLastError();
}

// The table of one op (quant_cuda_kernels.h).
#define QK_QUANT_CUDA_KERNELS(Op)                                                                 \
  {{quant_forward<Op, float>, quant_forward<Op, half>, quant_forward<Op, bfloat>},                \
   {quant_backward<Op, float>, quant_backward<Op, half>, quant_backward<Op, bfloat>}}

}  // namespace qk
