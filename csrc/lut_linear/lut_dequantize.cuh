// A packed weight as floats of some width: one thread for the eight columns that a lane owns of a row.
#pragma once
#include "../common/bits.h"
#include "../common/simt.cuh"
#include "lut_linear_cuda_kernels.h"

namespace qk {

constexpr int kDequantizeThreads = 256;
constexpr unsigned kDequantizeJobs = 32;  // sub-blocks of 32 columns a thread block, four at a time
template <class T> struct alignas(16) Eight { T of[8]; };

// The p bits of eight neighboring columns, code i in byte i: sub-block `block` of 32 columns, row of the stripe, t of the lane.
template <int p>
__device__ __forceinline__ uint64_t plane_codes(
    const uint8_t* __restrict__ plane, int64_t stripe, int64_t tiles, unsigned block, int row, int t) {
  constexpr unsigned kBlocks = 8 / p, kWord = p == 8 ? 1 : 4 / p;  // sub-blocks of a tile, of a word
  const unsigned within = block % kBlocks;
  const uint8_t* bytes = plane + (stripe * tiles + block / kBlocks) * 512 + (row % 8 * 4 + t) * 16 + row / 8 * 8;
  const uint32_t* words = reinterpret_cast<const uint32_t*>(bytes);
  if constexpr (p == 8) return uint64_t(words[1]) << 32 | words[0];
  const uint32_t word = words[within / kWord] >> (within % kWord * p);
  uint64_t codes = 0;
  for (int i = 0; i < 8; i++) codes |= uint64_t(word >> (4 * i) & ((1u << p) - 1)) << (8 * i);
  return codes;
}

// Sub-blocks are counted in 32 bits. of_group: those of a group, or 0 where it is the row.
template <class T, int BITS>
__global__ void __launch_bounds__(kDequantizeThreads) lut_dequantize_kernel(
    Packed w, int count, unsigned jobs, unsigned of_group,
    T* __restrict__ out) {  // [N, K]
  __shared__ float levels[256];
  for (int i = threadIdx.x; i < 256; i += kDequantizeThreads) levels[i] = i < count ? w.levels[i] : 0.0f;
  __syncthreads();
  const int64_t stripes = (w.N + kStripe - 1) / kStripe;
  const unsigned blocks = unsigned((w.K + 31) / 32);
  const int row = int(threadIdx.x) / 4 % 16, t = int(threadIdx.x) % 4;
  unsigned job = blockIdx.x * kDequantizeJobs + threadIdx.x / 64;
  unsigned stripe = job / blocks, block = job % blocks;
  for (unsigned end = job + kDequantizeJobs - threadIdx.x / 64; job < end && job < jobs; job += 4, block += 4) {
    for (; block >= blocks; block -= blocks) stripe++;
    const int64_t n = int64_t(stripe) * kStripe + row, k = int64_t(block) * 32 + t * 8;
    if (n >= w.N || k >= w.K) continue;
    uint64_t codes;
    if constexpr (BITS == 3) {
      const int64_t low = (w.K + 127) / 128, high = (w.K + 255) / 256;
      codes = plane_codes<2>(w.codes, stripe, low, block, row, t) |
              plane_codes<1>(w.codes + stripes * low * 512, stripe, high, block, row, t) << 2;
    } else {
      codes = plane_codes<BITS>(w.codes, stripe, (w.K + 256 / BITS - 1) / (256 / BITS), block, row, t);
    }
    const float scale = w.scale[(stripe * w.G + (of_group ? block / of_group : 0)) * kStripe + row];
    Eight<T> v;
    for (int i = 0; i < 8; i++) from_float(levels[codes >> (8 * i) & 255] * scale + 0.0f, v.of + i);  // never -0
    T* to = out + n * w.K + k;
    if (w.K % 8 == 0)
      *reinterpret_cast<Eight<T>*>(to) = v;  // stores of 16 bytes
    else
      for (int i = 0; i < 8 && k + i < w.K; i++) to[i] = v.of[i];
  }
}

template <class T, int BITS>
cudaError_t lut_dequantize(const Packed& w, int count, void* out, cudaStream_t stream) {
  const int64_t jobs = (w.N + kStripe - 1) / kStripe * ((w.K + 31) / 32);
  const unsigned grid = unsigned((jobs + kDequantizeJobs - 1) / kDequantizeJobs), of_group = w.G == 1 ? 0 : unsigned(w.group / 32);
  QK_LAUNCH((lut_dequantize_kernel<T, BITS>), grid, kDequantizeThreads, stream, w, count, unsigned(jobs), of_group, static_cast<T*>(out));
  return cudaGetLastError();
}

template <class T>
cudaError_t lut_dequantize_to(const Packed& w, int count, void* out, cudaStream_t stream) {
  switch (w.bits) {
    case 1: return lut_dequantize<T, 1>(w, count, out, stream);
    case 2: return lut_dequantize<T, 2>(w, count, out, stream);
    case 3: return lut_dequantize<T, 3>(w, count, out, stream);
    case 4: return lut_dequantize<T, 4>(w, count, out, stream);
    default: return lut_dequantize<T, 8>(w, count, out, stream);
  }
}

// dtype: 0 float32, 1 float16, 2 bfloat16.
inline cudaError_t lut_dequantize_any(const Packed& w, int count, void* out, int dtype, cudaStream_t stream) {
  const auto kernel = dtype == 0 ? lut_dequantize_to<float> : dtype == 1 ? lut_dequantize_to<half> : lut_dequantize_to<bfloat>;
  return kernel(w, count, out, stream);
}

}  // namespace qk
