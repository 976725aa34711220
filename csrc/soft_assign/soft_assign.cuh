// The CUDA loops of soft_assign, torch-free: the twin of soft_assign_simd.cpp. One thread block works on one job (blocks.h) at a
// time, its levels in shared memory. The weights are computed twice in the backward: kept, they would not fit the registers.
#pragma once
#include "../common/quant_kernels.cuh"
#include "soft_assign.h"
#include "soft_assign_cuda_kernels.h"

namespace qk {

constexpr int kEach = 4;  // elements a thread works on at once, so that a level's sum over the warp serves four

// A block's levels and their midpoints; NaN, all of them, where the temperature is not positive.
struct SharedLevels { float q[kMaxLevels], middle[kMaxLevels]; };

// Ends with a barrier.
__device__ __forceinline__ void load_levels(SharedLevels& l, const float* levels, float t, int K) {
  for (int k = threadIdx.x; k < K; k += kThreads) {
    l.q[k] = levels[k] + (t - t);
    l.middle[k] = midpoint(levels[k], levels[k + 1 < K ? k + 1 : k]) + (t - t);
  }
  __syncthreads();
}

__device__ __forceinline__ float nearest(const SharedLevels& l, float x, int K) {
  float m = l.q[0];
  for (int k = 1; k < K; k++) m = select(l.middle[k - 1] < x, l.q[k], m);
  return m;
}

// The sums of the weights e, and of e (q - m).
__device__ __forceinline__ void weigh(const SharedLevels& l, float x, float m, float s, int K, float& sum, float& first) {
  sum = first = 0;
  for (int k = 0; k < K; k++) {
    const float e = relative_weight(exponent(x, l.q[k], m, s));
    sum += e;
    first += e * (l.q[k] - m);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) soft_assign_forward_kernel(
    Blocks b, int K, bool hard,
    const T* __restrict__ x,                // [P, L]
    const float* __restrict__ levels,       // [P, K]
    const float* __restrict__ temperature,  // [P]
    T* __restrict__ y) {                    // [P, L]
  __shared__ SharedLevels l;
  for (int64_t job = blockIdx.x; job < b.jobs; job += gridDim.x) {
    const auto [p, base, n] = job_of(b, job);
    const float t = positive_or_nan(temperature[p]);
    load_levels(l, levels + p * K, t, K);
    for (int i = threadIdx.x; i < n; i += kThreads) {
      const float v = bounded(to_float(x[base + i])), m = nearest(l, v, K);
      float value = m + (v - v);  // 0, or NaN
      if (!hard) {
        float sum, first;
        weigh(l, v, m, t * kLog2e, K, sum, first);
        value = m + first / sum;
      }
      from_float(value, y + base + i);
    }
    __syncthreads();  // the next job writes its levels
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) soft_assign_backward_kernel(
    Blocks b, int K,
    const T* __restrict__ g,                // [P, L]
    const T* __restrict__ x,                // [P, L]
    const float* __restrict__ levels,       // [P, K]
    const float* __restrict__ temperature,  // [P]
    T* __restrict__ dx,                     // [P, L]
    float* __restrict__ partial) {          // [jobs, K + 1]
  __shared__ SharedLevels l;
  __shared__ float sums[kWarps][kMaxLevels + 1];
  const int warp = threadIdx.x / 32;
  const bool first_lane = threadIdx.x % 32 == 0;
  for (int64_t job = blockIdx.x; job < b.jobs; job += gridDim.x) {
    const auto [p, base, n] = job_of(b, job);
    const float t = positive_or_nan(temperature[p]), s = t * kLog2e, t2 = t + t;
    for (int k = threadIdx.x % 32; k <= K; k += 32) sums[warp][k] = 0;
    load_levels(l, levels + p * K, t, K);
    float dt = 0;
    for (int tile = threadIdx.x; tile < n + int(threadIdx.x); tile += kThreads * kEach) {  // all threads as often
      float v[kEach], gradient[kEach];
      SoftPoint<float> point[kEach];
      for (int e = 0; e < kEach; e++) {
        const int i = tile + e * kThreads;
        v[e] = i < n ? bounded(to_float(x[base + i])) : l.q[0];
        const float gi = i < n ? to_float(g[base + i]) : 0.0f;
        const float m = nearest(l, v[e], K);
        float sum, first;
        weigh(l, v[e], m, s, K, sum, first);
        point[e] = {m, first / sum, gi / sum};
        gradient[e] = 0;
      }
      for (int k = 0; k < K; k++) {
        float term = 0;
        for (int e = 0; e < kEach; e++) {
          if (tile + e * kThreads >= n) break;  // its terms are not always 0: 0 times what overflowed is NaN
          const float power = exponent(v[e], l.q[k], point[e].m, s);
          term += soft_terms(v[e], l.q[k], relative_weight(power), power, t2, point[e], gradient[e], dt);
        }
        term = warp_sum(term);
        if (first_lane) sums[warp][k] += term;
      }
      for (int e = 0; e < kEach; e++) {
        const int i = tile + e * kThreads;
        if (i < n) from_float(select(is_number(point[e].shift), gradient[e], 0.0f), dx + base + i);
      }
    }
    dt = warp_sum(dt);
    if (first_lane) sums[warp][K] = dt / s;
    __syncthreads();
    for (int k = threadIdx.x; k <= K; k += kThreads) {
      float total = 0;
      for (int w = 0; w < kWarps; w++) total += sums[w][k];
      partial[job * (K + 1) + k] = total;
    }
    __syncthreads();  // the next job writes its levels and sums
  }
}

// dlevels [P, K] and dtemperature [P] from partial [P, chunks, K + 1]; one thread block a value.
template <class>
__global__ void __launch_bounds__(kThreads) soft_assign_reduce_kernel(
    Blocks b, int K, const float* __restrict__ partial, float* __restrict__ dlevels, float* __restrict__ dtemperature) {
  __shared__ float warp_sums[kWarps];
  const int64_t P = b.jobs / b.chunks, width = K + 1;
  for (int64_t v = blockIdx.x; v < P * width; v += gridDim.x) {
    const int64_t p = v / width, k = v % width;
    float sum = 0;
    for (int64_t c = threadIdx.x; c < b.chunks; c += kThreads) sum += partial[(p * b.chunks + c) * width + k];
    const float total = block_sum(sum, warp_sums);
    if (threadIdx.x == 0) (k < K ? dlevels[p * K + k] : dtemperature[p]) = total;
  }
}

template <class T>
cudaError_t soft_assign_forward(const Blocks& b, int64_t K, bool hard, const void* x, const float* levels,
                                const float* temperature, void* y, cudaStream_t stream) {
  if (b.jobs == 0) return cudaSuccess;
  QK_LAUNCH((soft_assign_forward_kernel<T>), grid(b.jobs), kThreads, stream, b, int(K), hard, static_cast<const T*>(x), levels,
            temperature, static_cast<T*>(y));
  return cudaGetLastError();
}

template <class T>
cudaError_t soft_assign_backward(const Blocks& b, int64_t K, const void* g, const void* x, const float* levels,
                                 const float* temperature, void* dx, float* partial, float* dlevels, float* dtemperature,
                                 cudaStream_t stream) {
  if (b.jobs == 0) return cudaSuccess;  // the caller's gradients are zero
  QK_LAUNCH((soft_assign_backward_kernel<T>), grid(b.jobs), kThreads, stream, b, int(K), static_cast<const T*>(g),
            static_cast<const T*>(x), levels, temperature, static_cast<T*>(dx), partial);
  QK_LAUNCH((soft_assign_reduce_kernel<float>), grid(b.jobs / b.chunks * (K + 1)), kThreads, stream, b, int(K), partial, dlevels,
            dtemperature);
  return cudaGetLastError();
}

}  // namespace qk
