// y [M, N] = x [M, K] times a packed weight, for tens to hundreds of rows of x on Hopper: bound by its matrix units.
//
// A thread block computes 128 rows of the weight by 128 rows of x. Each of its eight warps has a stripe of 16 rows: it turns codes
// to fragments in registers as lut_decode.cuh does, and these are operand A of wgmma.m64n128k16. x is operand B, in shared memory:
// lut_arrange_kernel lays it out in chunks of 64 columns as they shall lie there, so that a chunk is one copy of 16 KiB, and
// orders the columns as the fragments have them. While the products of a chunk run, the next one is decoded.
//
// The products of 128 columns, or of 64 where groups are finer, are added up in `sum`; then sum times scale goes to `total`. With
// levels that x's dtype cannot hold, K is gone through once for each of their terms (lut_decode.cuh).
#pragma once
#include "../common/wgmma.cuh"
#include "lut_decode.cuh"

namespace qk {

constexpr int kPrefillThreads = kDecodeThreads, kPrefillStripes = kPrefillThreads / 32;
constexpr int kChunk = 64;                          // columns
constexpr int kChunkBytes = kWide * kChunk * 2;     // of 128 rows of x
constexpr unsigned kStages = 4;                     // chunks in shared memory
constexpr int kPrefillRows = int(kStages) * kChunkBytes + kTableBytes;  // where the rows of the table are made
constexpr int kPrefillBarriers = kPrefillRows + 256 * int(sizeof(Pair));
constexpr int kPrefillLargest = kPrefillBarriers + 2 * int(kStages) * kBarrierBytes;
constexpr size_t kPrefillShared = kPrefillLargest + 2 * kDecodeWarps * sizeof(float) + 1024;  // and to begin at a kilobyte
static_assert(kPrefillShared <= 227 * 1024, "an SM of sm_90 has room for it");

struct PrefillArgs {
  DecodeArgs a;
  const unsigned char* image;  // of x: [M / 128 rounded up][chunks] chunks
  int chunks;                  // of all batches
  bool each;                   // scales may change after each chunk, not after every second
};

// x into its image, zeros where it ends. A thread writes 16 bytes: 8 of a row's columns, as a fragment has them.
template <class T>
__global__ void __launch_bounds__(256) lut_arrange_kernel(PrefillArgs args) {
  const Decode& d = args.a.d;
  const T* x = static_cast<const T*>(d.x);
  const int64_t pieces = (d.M + kWide - 1) / kWide * args.chunks * (kChunkBytes / 16);
  wait_for_previous_grid();
  for (int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x; i < pieces; i += int64_t(gridDim.x) * 256) {
    const int j = int(i % 8), row = int(i / 8 % kWide);  // piece of the row
    const int64_t chunk = i / (8 * kWide) % args.chunks, tile = i / (8 * kWide) / args.chunks, m = tile * kWide + row;
    uint32_t words[4];
    for (int t = 0; t < 4; t++) {
      const int64_t k = chunk * kChunk + j / 4 * 32 + 8 * t + j % 4 * 2;
      const uint32_t low = m < d.M && k < d.w.K ? x[m * d.w.K + k].bits : 0, high = m < d.M && k + 1 < d.w.K ? x[m * d.w.K + k + 1].bits : 0;
      words[t] = low | high << 16;
    }
    const int64_t at = (tile * args.chunks + chunk) * kChunkBytes + row * 128 + ((j ^ row % 8) * 16);
    *reinterpret_cast<Words*>(const_cast<unsigned char*>(args.image) + at) = {words[0], words[1], words[2], words[3]};
  }
}

#if defined(QK_SIMT_HOST)
template <int N>
inline void pin(float (&)[N]) {}
inline void pin(const uint32_t (&)[4][4]) {}
#elif defined(__CUDACC__)
// The compiler does not know that products go on: it may not read the sums, nor use the registers of A again, before this.
template <int N>
__device__ __forceinline__ void pin(float (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(v[i])::"memory");
}
__device__ __forceinline__ void pin(const uint32_t (&v)[4][4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) asm volatile("" ::"r"(v[i][0]), "r"(v[i][1]), "r"(v[i][2]), "r"(v[i][3]) : "memory");
}
#endif

template <class T, int BITS>
__global__ void __launch_bounds__(kPrefillThreads, 1) lut_prefill_kernel(PrefillArgs args) {
#if defined(QK_SIMT_HOST) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr int kColumns = Codes<BITS>::kColumns, kLow = Codes<BITS>::kLow, kHigh = Codes<BITS>::kHigh;
  constexpr int kPairs = kColumns / kChunk;  // chunks of a batch
  constexpr bool kPaired = is_paired<BITS>;
  const Decode& d = args.a.d;
  const Packed& w = d.w;
  unsigned char* const stages = dynamic_shared() + (1024 - shared_address(dynamic_shared()) % 1024) % 1024;
  unsigned char* const table = stages + kStages * kChunkBytes;
  unsigned char* const full = stages + kPrefillBarriers;            // [kStages]: the chunk is there
  unsigned char* const empty = full + kStages * kBarrierBytes;      // [kStages]: its products are
  float* const largest = reinterpret_cast<float*>(stages + kPrefillLargest);
  const int lane = int(threadIdx.x) % 32, warp = of_warp(int(threadIdx.x) / 32);
  const uint32_t place = lane * (kPaired ? 8 : 4);
  const int stripe = int(blockIdx.y) * kPrefillStripes + warp;
  const bool there = stripe < args.a.stripes;
  const int begin = int(int64_t(args.a.batches) * blockIdx.z / d.plan.splits), end = int(int64_t(args.a.batches) * (blockIdx.z + 1) / d.plan.splits);
  const unsigned count = (end - begin) * kPairs;  // chunks of a term

  if (threadIdx.x == 0) {
    for (unsigned s = 0; s < kStages; s++) barrier_create(full + s * kBarrierBytes, 1), barrier_create(empty + s * kBarrierBytes, kPrefillStripes);
    barriers_are_created();
  }


  // The batch after the one in hand, as in lut_decode_kernel.
  const uint8_t* next_low = w.codes + (int64_t(stripe) * args.a.low_tiles + begin * kLow) * kTile + lane * 16;
  int next_high = args.a.stripes * args.a.low_tiles + stripe * args.a.high_tiles + begin * kHigh;
  int left = there && begin < end ? args.a.low_tiles - begin * kLow : 0;
  Codes<BITS> codes{};
  const auto load_low = [&](int i) { return load_streamed(next_low + i * kTile, i < left, codes.low[i]); };
  const auto load_high = [&](int i) { return load_streamed(w.codes + (int64_t(next_high) + i) * kTile + lane * 16, 2 * i < left, codes.high[i]); };
#pragma unroll
  for (int i = 0; i < kLow; i++) codes.low[i] = load_low(i);
#pragma unroll
  for (int i = 0; i < kHigh; i++) codes.high[i] = load_high(i);

  wait_for_previous_grid();  // from here on x is read, and levels and scales, which may train
  const auto [unit, terms] = terms_of<T>(d, largest);
  // Chunk q of all terms, into stage q % kStages, once the products of chunk q - kStages are there.
  const unsigned char* const image = args.image + (int64_t(blockIdx.x) * args.chunks + begin * kPairs) * kChunkBytes;
  unsigned of_image = 0;  // the chunk that comes next
  const auto bring = [&](unsigned q) {
    const unsigned stage = q % kStages;
    if (q >= kStages) barrier_wait(empty + stage * kBarrierBytes, (q / kStages - 1) % 2);
    barrier_expect(full + stage * kBarrierBytes, kChunkBytes);
    bulk_copy(stages + stage * kChunkBytes, image + int64_t(of_image) * kChunkBytes, kChunkBytes, full + stage * kBarrierBytes);
    of_image = of_image + 1 < count ? of_image + 1 : 0;
  };

  float total[kWide / 2] = {}, sum[kWide / 2] = {};
  uint32_t fragments[2][4][4];  // of two chunks in turn: [16 columns][register]
  const auto decode = [&](int pair, uint32_t (&out)[4][4]) {
    uint32_t a[2][2][4];
    decode_pair<BITS>(codes, pair, table, place, a);
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
      for (int v = 0; v < 4; v++)  // row g or g + 8, columns 2 t or 2 t + 8
        out[step][v] = kPaired ? a[v % 2][step % 2][v / 2 * 2 + step / 2] : a[step / 2][v % 2][step % 2 * 2 + v / 2];
    // The tiles that this pair was the last to read are loaded anew.
    if constexpr (BITS == 8) {
#pragma unroll
      for (int tile = 2 * pair; tile < 2 * pair + 2; tile++) codes.low[tile] = load_low(tile);
    } else {
      constexpr int kOfTile = 4 / Codes<BITS>::kLowBits;
      if (pair % kOfTile == kOfTile - 1) codes.low[pair / kOfTile] = load_low(pair / kOfTile);
      if constexpr (BITS == 3)
        if (pair % 4 == 3) codes.high[pair / 4] = load_high(pair / 4);
    }
  };

  const auto start = [&](int batch, int term) {  // its first pair; what that reads is loaded anew for the batch after it
    next_low += kLow * kTile;
    next_high += kHigh;
    left -= kLow;
    if (batch + 1 == end) {  // again from the start, for another term
      next_low -= int64_t(end - begin) * kLow * kTile;
      next_high -= (end - begin) * kHigh;
      left = there && term + 1 < terms ? args.a.low_tiles - begin * kLow : 0;
    }
    decode(0, fragments[0]);
  };

  unsigned q = 0;  // chunk, of all terms
  for (int term = 0; term < terms; term++) {
    __syncthreads();  // nobody reads the table any more; the barriers are created
    fill_table<T, BITS>(d, term, unit, table, reinterpret_cast<Pair*>(stages + kPrefillRows));
    __syncthreads();
    if (term == 0 && threadIdx.x == 0)
      for (unsigned ahead = 0; ahead < kStages && ahead < terms * count; ahead++) bring(ahead);
    if (begin < end) start(begin, term);
    for (int batch = begin; batch < end; batch++) {
#pragma unroll
      for (int pair = 0; pair < kPairs; pair++, q++) {
        const unsigned stage = q % kStages;
        const bool drain = args.each || pair % 2 == 1;
        barrier_wait(full + stage * kBarrierBytes, q / kStages % 2);
        const uint32_t rows = shared_address(stages + stage * kChunkBytes);
        pin(sum);
        products_begin();
#pragma unroll
        for (int step = 0; step < 4; step++)
          multiply_wide<T>(sum, fragments[pair % 2][step], swizzled_rows(rows + step * 32), step > 0 || !(args.each || pair % 2 == 0));
        products_commit();
        products_wait<1>();  // of the chunk before
        pin(fragments[1 - pair % 2]);
        if (q > 0) {
          if (lane == 0) barrier_arrive(empty + (q - 1) % kStages * kBarrierBytes);
          if (threadIdx.x == 0 && q - 1 + kStages < terms * count) bring(q - 1 + kStages);
        }
        if (pair + 1 < kPairs) decode(pair + 1, fragments[1 - pair % 2]);
        else if (batch + 1 < end) start(batch + 1, term);
        if (drain) {
          const uint32_t block = uint32_t(batch * (kColumns / 32) + pair * 2), index = multiply_high(2 * block, args.a.group_inverse);
          const uint32_t group = index < args.a.last_group ? index : args.a.last_group;  // beyond K
          const float* scale = static_cast<const float*>(w.scale.data) + (int64_t(there ? stripe : 0) * w.G + group) * kStripe + lane / 4;
          const float s[2] = {scale[0], scale[8]};
          products_wait<0>();
          pin(sum);
#pragma unroll
          for (int v = 0; v < kWide / 2; v++) total[v] = fused(s[v / 2 % 2], sum[v], total[v]);
        }
      }
    }
  }

  if (!there) return;
#pragma unroll
  for (int v = 0; v < kWide / 2; v++) {
    const int64_t m = int64_t(blockIdx.x) * kWide + v / 4 * 8 + lane % 4 * 2 + v % 2, n = int64_t(stripe) * kStripe + v / 2 % 2 * 8 + lane / 4;
    if (n >= w.N || m >= d.M) continue;
    float y = total[v];
    if constexpr (std::is_same_v<T, half>) y /= unit;  // a power of two
    if (d.plan.splits > 1) d.partial[(int64_t(blockIdx.z) * d.M + m) * w.N + n] = y;
    else from_float(d.bias ? y + d.bias[n] : y, static_cast<T*>(d.y) + m * w.N + n);
  }
#endif
}

template <class T, int BITS>
cudaError_t lut_prefill(const Decode& d, void* image, cudaStream_t stream) {
  const DecodeArgs a = decode_args<BITS>(d);
  const int64_t tiles = (d.M + kWide - 1) / kWide;
  const PrefillArgs args{a, static_cast<const unsigned char*>(image), a.batches * (Codes<BITS>::kColumns / kChunk),
                         d.w.G > 1 && d.w.group % (2 * kChunk) != 0};
  const int64_t wanted = tiles * args.chunks * (kChunkBytes / 16) / 256;
  cudaError_t e = launch_shared(lut_arrange_kernel<T>, {unsigned(wanted < 65536 ? wanted : 65536), 1, 1}, 256, 0, d.plan.early, stream, args);
  if (e != cudaSuccess) return e;
  const Grid grid{unsigned(tiles), unsigned((a.stripes + kPrefillStripes - 1) / kPrefillStripes), unsigned(d.plan.splits)};
  e = launch_shared(lut_prefill_kernel<T, BITS>, grid, kPrefillThreads, kPrefillShared, d.plan.early, stream, args);
  return e == cudaSuccess && d.plan.splits > 1 ? lut_reduce<T>(a, stream) : e;
}

// Every kernel of one width.
#define QK_LUT_PREFILL(BITS)                                                                              \
  template <>                                                                                             \
  cudaError_t lut_prefill_cuda<BITS>(const Decode& d, void* image, bool bfloat16, cudaStream_t stream) {  \
    return bfloat16 ? lut_prefill<bfloat, BITS>(d, image, stream) : lut_prefill<half, BITS>(d, image, stream); \
  }

}  // namespace qk
