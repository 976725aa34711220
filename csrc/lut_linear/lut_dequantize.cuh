// A packed weight as floats: one thread for the eight columns that a lane owns of a row.
#pragma once
#include "../common/bits.h"
#include "../common/simt.cuh"
#include "lut_linear_cuda_kernels.h"

namespace qk {

constexpr int kDequantizeThreads = 256;
struct alignas(16) Eight { float of[8]; };

// The p bits of eight neighboring columns, code i in byte i: sub-block `block` of 32 columns, row of the stripe, t of the lane.
template <int p>
__device__ __forceinline__ uint64_t plane_codes(
    const uint8_t* __restrict__ plane, int64_t stripe, int64_t tiles, int64_t block, int row, int t) {
  constexpr int kBlocks = 8 / p, kWord = p == 8 ? 1 : 4 / p;  // sub-blocks of a tile, of a word
  const int within = int(block % kBlocks);
  const uint8_t* bytes = plane + (stripe * tiles + block / kBlocks) * 512 + (row % 8 * 4 + t) * 16 + row / 8 * 8;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(bytes);
  if constexpr (p == 8) return uint64_t(words[1]) << 32 | words[0];
  const uint32_t word = words[within / kWord] >> (within % kWord * p);
  uint64_t codes = 0;
  for (int i = 0; i < 8; i++) codes |= uint64_t(word >> (4 * i) & ((1u << p) - 1)) << (8 * i);
  return codes;
}

template <int BITS>
__global__ void __launch_bounds__(kDequantizeThreads) lut_dequantize_kernel(
    Packed w, int count,
    float* __restrict__ out) {  // [N, K]
  __shared__ float levels[256];
  for (int i = threadIdx.x; i < 256; i += kDequantizeThreads) levels[i] = i < count ? w.levels[i] : 0.0f;
  __syncthreads();
  const int64_t stripes = (w.N + kStripe - 1) / kStripe, blocks = (w.K + 31) / 32;
  const int row = int(threadIdx.x) / 4 % 16, t = int(threadIdx.x) % 4;
  constexpr int kJobs = kDequantizeThreads / 64;  // sub-blocks at a time
  for (int64_t job = int64_t(blockIdx.x) * kJobs + threadIdx.x / 64; job < stripes * blocks; job += int64_t(gridDim.x) * kJobs) {
    const int64_t stripe = job / blocks, block = job % blocks, n = stripe * kStripe + row, k = block * 32 + t * 8;
    if (n >= w.N || k >= w.K) continue;
    uint64_t codes;
    if constexpr (BITS == 3) {
      const int64_t low = (w.K + 127) / 128, high = (w.K + 255) / 256;
      codes = plane_codes<2>(w.codes, stripe, low, block, row, t) |
              plane_codes<1>(w.codes + stripes * low * 512, stripe, high, block, row, t) << 2;
    } else {
      codes = plane_codes<BITS>(w.codes, stripe, (w.K + 256 / BITS - 1) / (256 / BITS), block, row, t);
    }
    const float scale = w.scale[(stripe * w.G + k / w.group) * kStripe + row];  // a group ends on a multiple of 32, or with K
    Eight v;
    for (int i = 0; i < 8; i++) v.of[i] = levels[codes >> (8 * i) & 255] * scale + 0.0f;  // never -0
    float* to = out + n * w.K + k;
    if (w.K % 8 == 0)
      *reinterpret_cast<Eight*>(to) = v;  // two stores of 16 bytes
    else
      for (int i = 0; i < 8 && k + i < w.K; i++) to[i] = v.of[i];
  }
}

template <int BITS>
cudaError_t lut_dequantize(const Packed& w, int count, float* out, cudaStream_t stream) {
  const int64_t jobs = (w.N + kStripe - 1) / kStripe * ((w.K + 31) / 32), wanted = (jobs + 3) / 4;
  const unsigned grid = unsigned(wanted < (1 << 20) ? wanted : 1 << 20);
  QK_LAUNCH((lut_dequantize_kernel<BITS>), grid, kDequantizeThreads, stream, w, count, out);
  return cudaGetLastError();
}

inline cudaError_t lut_dequantize_any(const Packed& w, int count, float* out, cudaStream_t stream) {
  switch (w.bits) {
    case 1: return lut_dequantize<1>(w, count, out, stream);
    case 2: return lut_dequantize<2>(w, count, out, stream);
    case 3: return lut_dequantize<3>(w, count, out, stream);
    case 4: return lut_dequantize<4>(w, count, out, stream);
    default: return lut_dequantize<8>(w, count, out, stream);
  }
}

}  // namespace qk
