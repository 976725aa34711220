// The CUDA loops of channel_error, torch-free: partial sums of pieces, then one fixed-order sum a channel. A long run of one
// channel is cut into chunks, one thread block each; short runs lie side by side, 32 columns of 256 rows a thread block.
#pragma once
#include "../common/quant_kernels.cuh"
#include "channel_error.h"
#include "channel_error_cuda_kernels.h"

namespace qk {

constexpr int kRowsEach = 32;                  // a thread: its sum in float32 loses no more than that of a chunk
constexpr int kGroupRows = kWarps * kRowsEach;

template <class T>
__global__ void __launch_bounds__(kThreads) channel_error_runs_kernel(
    Blocks b, float lo, float hi, const float* __restrict__ step,
    const T* __restrict__ x,          // [outer * C, inner]
    float* __restrict__ partial) {    // [jobs, 3]
  __shared__ float warp_sums[kWarps];
  const float s = positive_or_nan(*step);
  for (int64_t job = blockIdx.x; job < b.jobs; job += gridDim.x) {
    const int64_t start = job % b.chunks * kChunk, base = job / b.chunks * b.L + start;
    const int n = int(b.L - start < kChunk ? b.L - start : kChunk);
    ChannelSums<float> sums{0, 0, 0};
    for (int i = threadIdx.x; i < n; i += kThreads) sums.add(lo, hi, s, to_float(x[base + i]));
    const float own[3] = {sums.a, sums.t, sums.u};
    for (int k = 0; k < 3; k++) {
      const float total = block_sum(own[k], warp_sums);
      if (threadIdx.x == 0) partial[job * 3 + k] = total;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) channel_error_columns_kernel(
    int64_t rows, int64_t width, float lo, float hi, const float* __restrict__ step,
    const T* __restrict__ x,          // [rows, width]
    float* __restrict__ partial) {    // [groups of rows, width, 3]
  __shared__ float shared[3][kWarps][32];
  const float s = positive_or_nan(*step);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t tiles = (width + 31) / 32, jobs = (rows + kGroupRows - 1) / kGroupRows * tiles;
  for (int64_t job = blockIdx.x; job < jobs; job += gridDim.x) {
    const int64_t group = job / tiles, column = job % tiles * 32 + lane;
    const int64_t end = (group + 1) * kGroupRows < rows ? (group + 1) * kGroupRows : rows;
    ChannelSums<float> sums{0, 0, 0};
    if (column < width)
      for (int64_t r = group * kGroupRows + warp; r < end; r += kWarps) sums.add(lo, hi, s, to_float(x[r * width + column]));
    shared[0][warp][lane] = sums.a, shared[1][warp][lane] = sums.t, shared[2][warp][lane] = sums.u;
    __syncthreads();
    if (warp < 3 && column < width) {
      float total = 0;
      for (int w = 0; w < kWarps; w++) total += shared[warp][w][lane];
      partial[(group * width + column) * 3 + warp] = total;
    }
    __syncthreads();  // the next job writes its sums
  }
}

// sums [3, C] from partial [slots, C, parts, 3]; one thread block a value.
template <class>
__global__ void __launch_bounds__(kThreads) channel_error_reduce_kernel(
    ChannelParts p, int64_t C, const float* __restrict__ partial, float* __restrict__ sums) {
  __shared__ float warp_sums[kWarps];
  for (int64_t v = blockIdx.x; v < 3 * C; v += gridDim.x) {
    const int64_t k = v / C, c = v % C;
    double sum = 0;
    for (int64_t i = threadIdx.x; i < p.slots * p.parts; i += kThreads)
      sum += partial[((i / p.parts * C + c) * p.parts + i % p.parts) * 3 + k];
    const float total = block_sum(float(sum), warp_sums);
    if (threadIdx.x == 0) sums[v] = total;
  }
}

inline ChannelParts channel_parts(int64_t outer, int64_t C, int64_t inner) {
  if (inner < kLongRun) return {(outer + kGroupRows - 1) / kGroupRows, inner};
  return {outer, make_blocks(1, inner).chunks};
}

template <class T>
cudaError_t channel_error(int64_t outer, int64_t C, int64_t inner, float lo, float hi, const float* step, const void* x,
                          float* partial, float* sums, cudaStream_t stream) {
  const ChannelParts p = channel_parts(outer, C, inner);
  const T* in = static_cast<const T*>(x);
  if (inner < kLongRun) {
    const int64_t width = C * inner;
    QK_LAUNCH((channel_error_columns_kernel<T>), grid(p.slots * ((width + 31) / 32)), kThreads, stream, outer, width, lo, hi, step,
              in, partial);
  } else {
    const Blocks b = make_blocks(outer * C, outer * C * inner);
    QK_LAUNCH((channel_error_runs_kernel<T>), grid(b.jobs), kThreads, stream, b, lo, hi, step, in, partial);
  }
  QK_LAUNCH((channel_error_reduce_kernel<float>), grid(3 * C), kThreads, stream, p, C, partial, sums);
  return cudaGetLastError();
}

}  // namespace qk
