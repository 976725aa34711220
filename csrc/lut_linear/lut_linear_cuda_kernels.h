// What the .cu files of lut_linear offer their binding, torch-free.
#pragma once
#ifndef QK_SIMT_HOST
#include <cuda_runtime.h>
#endif
#include "lut_linear.h"

namespace qk {

// How the decode kernel is spread over the GPU: what pick() of qkernels/ops/lut_linear/plan.py chose. Of these and of N, K and
// bits alone depends the order in which a row of x is added.
struct DecodePlan {
  int stripes;  // that one thread block works through
  int splits;   // of K over thread blocks
  int warps;    // of a thread block that split K: 1, 2, 4 or 8; the others work on other stripes
  bool early = false;  // see launch_shared
};

struct Decode {
  Packed w;              // levels: [count]; scale: float32, or to decode groups that are not fine x's dtype
  int count;             // of levels
  const void* x;         // [M, ld], zero from K on; 16-byte aligned
  int64_t M, ld;         // ld: a multiple of decode_columns(bits), at least K
  const float* bias;     // [N] or null
  void* y;               // [M, N], x's dtype
  float* partial;        // [splits, M, N]; unused with one split
  DecodePlan plan;
};

// Groups of which several may end within 128 columns.
constexpr bool is_fine(int64_t group, int64_t K) { return group != K && group % 128 != 0; }
// Columns that a warp decodes at a time: 1 to 4 loads of 512 bytes. With more the compiler collects loads until it spills.
constexpr int decode_columns(int bits) { return bits == 8 ? 128 : 256; }
// Group indices come from a multiplication, exact up to here (lut_decode.cuh).
constexpr int64_t kDecodeMostColumns = 1 << 20;

// out: [N, K], of a dtype as dtype_index has it; with at most 2**32 - 32 sub-blocks, of 16 rows and 32 columns.
cudaError_t lut_dequantize_cuda(const Packed& w, int count, void* out, int dtype, cudaStream_t stream);
template <int BITS>
cudaError_t lut_decode_cuda(const Decode& d, bool bfloat16, cudaStream_t stream);
// For sm_90, groups that are multiples of 64 columns or whole rows. x: [M, K] as it is (ld is not read). image: room for
// prefill_bytes, at a multiple of 16; of the plan, splits is used.
template <int BITS>
cudaError_t lut_prefill_cuda(const Decode& d, void* image, bool bfloat16, cudaStream_t stream);
constexpr int64_t prefill_bytes(int bits, int64_t M, int64_t K) {
  const int64_t columns = decode_columns(bits);
  return (M + 127) / 128 * 128 * ((K + columns - 1) / columns * columns) * 2;
}

}  // namespace qk
