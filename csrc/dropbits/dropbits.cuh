// The CUDA loops of dropbits, torch-free: the twin of dropbits_simd.cpp. One thread block works on one job (blocks.h) at a time,
// the table of its levels in shared memory. The masses are computed twice in the backward: kept, 127 would not fit the registers.
#pragma once
#include "../common/quant_kernels.cuh"
#include "dropbits.h"
#include "dropbits_cuda_kernels.h"

namespace qk {

template <class T>
__global__ void __launch_bounds__(kThreads) dropbits_forward_kernel(
    DropBitsArgs args, Blocks b,
    const T* __restrict__ x,  // [P, L]
    Params<3> params,         // step [P], sigma [P], keep [levels - 1]
    T* __restrict__ y) {      // [P, L]
  __shared__ DropBitsTable table;
  for (int64_t job = blockIdx.x; job < b.jobs; job += gridDim.x) {
    const auto [p, base, n] = job_of(b, job);
    const DropBits<float> op(args, params.p, p, table);
    if (threadIdx.x == 0) op.cut(table, args, params.p[2]);
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += kThreads) from_float(op.value(to_float(x[base + i])), y + base + i);
    __syncthreads();  // the next job writes its table
  }
}

constexpr int kDropBitsEach = 2;  // elements a thread works on at once, which share the sum over the warp; 4 need 116 registers

template <class T>
__global__ void __launch_bounds__(kThreads) dropbits_backward_kernel(
    DropBitsArgs args, Blocks b,
    const T* __restrict__ g,         // [P, L]
    const T* __restrict__ x,         // [P, L]
    Params<3> params,                // step [P], sigma [P], keep [levels - 1]
    T* __restrict__ dx,              // [P, L]
    float* __restrict__ partial) {   // [jobs, 1 + levels]: of step, sigma and the gates
  __shared__ DropBitsTable table;
  __shared__ float sums[kWarps][1 + kDropBitsLevels];
  const int warp = threadIdx.x / 32, count = 1 + args.levels;
  const bool first_lane = threadIdx.x % 32 == 0;
  for (int64_t job = blockIdx.x; job < b.jobs; job += gridDim.x) {
    const auto [p, base, n] = job_of(b, job);
    const DropBits<float> op(args, params.p, p, table);
    op.fill(table, args, params.p[2], threadIdx.x, kThreads);
    for (int k = threadIdx.x % 32; k < count; k += 32) sums[warp][k] = 0;
    __syncthreads();
    float own[2] = {0, 0};
    for (int tile = threadIdx.x; tile < n + threadIdx.x; tile += kThreads * kDropBitsEach) {  // all threads as often
      DropBits<float>::Choice choice[kDropBitsEach];
      DropBits<float>::Place place[kDropBitsEach];
      DropBits<float>::Share share[kDropBitsEach];
#pragma unroll
      for (int e = 0; e < kDropBitsEach; e++) {
        const int i = tile + e * kThreads;
        const float v = i < n ? to_float(x[base + i]) : 0.0f, gi = i < n ? to_float(g[base + i]) : 0.0f;
        float terms[2];
        choice[e] = op.choose(v), place[e] = op.place(choice[e]);
        const float d = op.template grad<false>(gi, v, choice[e], place[e], terms, &share[e], nullptr);
        if (i < n) {  // beyond n the terms are not always 0: 0 times what overflowed is NaN
          own[0] += terms[0], own[1] += terms[1];
          from_float(d, dx + base + i);
        }
      }
      for (int k = 1; k < args.levels; k++) {
        if (!(table.level[k].keep > 0.0f)) continue;  // for all threads alike
        float term = 0;
#pragma unroll
        for (int e = 0; e < kDropBitsEach; e++)
          if (tile + e * kThreads < n) term += op.gate_gradient(choice[e], share[e], op.mass(choice[e], place[e], k), k);
        term = warp_sum(term);
        if (first_lane) sums[warp][k + 1] += term;
      }
    }
    for (int k = 0; k < 2; k++) {
      const float term = warp_sum(own[k]);
      if (first_lane) sums[warp][k] = term;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += kThreads) {
      float total = 0;
      for (int w = 0; w < kWarps; w++) total += sums[w][k];
      const float keep = k < 2 ? 1.0f : table.level[k - 1].keep;
      partial[job * count + k] = keep > 0.0f ? total / keep : total;
    }
    __syncthreads();  // the next job writes its table and sums
  }
}

// The gradients from partial [P, chunks, 1 + levels]; one thread block a value. A gate's is over all of x, which may be more
// jobs than float32 adds up one by one.
template <class>
__global__ void __launch_bounds__(kThreads) dropbits_reduce_kernel(
    Blocks b, int levels, const float* __restrict__ partial, float* __restrict__ dstep, float* __restrict__ dsigma,
    float* __restrict__ dkeep) {
  __shared__ float warp_sums[kWarps];
  const int64_t P = b.jobs / b.chunks, width = 1 + levels;
  for (int64_t v = blockIdx.x; v < 2 * P + levels - 1; v += gridDim.x) {
    const bool gate = v >= 2 * P;
    const int64_t p = gate ? 0 : v / 2, k = gate ? v - 2 * P + 2 : v % 2, jobs = gate ? b.jobs : b.chunks;
    double sum = 0;
    for (int64_t job = threadIdx.x; job < jobs; job += kThreads) sum += partial[(p * b.chunks + job) * width + k];
    const float total = block_sum(float(sum), warp_sums);
    if (threadIdx.x == 0) (gate ? dkeep[k - 2] : k ? dsigma[p] : dstep[p]) = total;
  }
}

template <class T>
cudaError_t dropbits_forward(const DropBitsArgs& args, const Blocks& b, const void* x, Params<3> params, void* y,
                             cudaStream_t stream) {
  if (b.jobs == 0) return cudaSuccess;
  QK_LAUNCH((dropbits_forward_kernel<T>), grid(b.jobs), kThreads, stream, args, b, static_cast<const T*>(x), params,
            static_cast<T*>(y));
  return cudaGetLastError();
}

template <class T>
cudaError_t dropbits_backward(const DropBitsArgs& args, const Blocks& b, const void* g, const void* x, Params<3> params, void* dx,
                              float* partial, float* dstep, float* dsigma, float* dkeep, cudaStream_t stream) {
  if (b.jobs == 0) return cudaSuccess;  // the caller's gradients are zero
  QK_LAUNCH((dropbits_backward_kernel<T>), grid(b.jobs), kThreads, stream, args, b, static_cast<const T*>(g),
            static_cast<const T*>(x), params, static_cast<T*>(dx), partial);
  QK_LAUNCH((dropbits_reduce_kernel<float>), grid(b.jobs / b.chunks * 2 + args.levels - 1), kThreads, stream, b, args.levels,
            partial, dstep, dsigma, dkeep);
  return cudaGetLastError();
}

}  // namespace qk
