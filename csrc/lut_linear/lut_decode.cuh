// y [M, N] = x [M, K] times a packed weight, for few rows of x: bound by the bytes of the weight.
//
// A thread block works on stripes of 16 rows of the weight. Its warps split K: each streams its own part of a stripe from memory
// straight to registers, 512 bytes a load (T16 is in the order of the fragments of mma.m16n8k16: qkernels/pack.py), turns codes
// to pairs of levels through a table in shared memory, and multiplies, also for one row of x. Nothing is waited for inside: the
// registers of a load are filled again, for the batch after this one, as soon as they have been read. Warps, then thread
// blocks, add their parts in a fixed order that does not depend on M.
//
// The table has a row for each value of a byte of codes, 256 bytes apart, and in each row a place for each lane. So the address of
// a look-up is one `permute`: byte 0 is the lane's place, byte 1 the byte of codes; and a lane always meets its own bank.
//
//   bits  a byte of codes holds            a look-up gives              bytes of a row used
//   4     2 codes                          2 levels, 4 bytes            128
//   2     2 codes of each of 2 sub-blocks  4 levels, 8 bytes            256
//   1     the same for 2 of its 4 (the others' bits are ignored; for those the word is shifted by 2)
//   3     2 codes, put together from the two planes; 2 levels, 4 bytes. Sub-blocks A and C have the low bits of a code in bits
//         0-1 of its nibble and the high bit in bit 2; B and D in bits 2-3 and bit 1, so that two of four need no shift. They have
//         a table each, in the two halves of a row; a nibble's fourth bit is ignored.
//   8     1 code                           1 level twice, 4 bytes; a further `permute` makes a pair of two
//
// Levels that x's dtype cannot hold are not rounded: they become a sum of up to three terms that it can, and K is gone through once
// for each term. One term is enough for integers and other exact levels; the kernel finds out by itself. float16 has few
// exponents, so its levels are first scaled by a power of two that brings the largest to [2**14, 2**15), and the sums back.
#pragma once
#include "../common/bits.h"
#include "../common/maths.h"
#include "../common/ptx.cuh"
#include "lut_linear_cuda_kernels.h"

namespace qk {

constexpr int kDecodeThreads = 256, kDecodeWarps = kDecodeThreads / 32;
constexpr int kTableRow = 256, kTableBytes = 256 * kTableRow;
constexpr int kTile = 512;                        // bytes of 16 rows of a plane that a warp loads at once
constexpr int kFragment = 128;                    // values of a warp's 16 x 8 result
constexpr int kPartFloats = kDecodeWarps * kFragment;
constexpr size_t kDecodeShared = kTableBytes + 2 * kPartFloats * sizeof(float) + 2 * kDecodeWarps * sizeof(float);
static_assert(kDecodeThreads == 256, "a thread computes one row of the table");
static_assert(2 * (kDecodeShared + 1024) <= 164 * 1024, "two thread blocks fit an SM of sm_80");

struct DecodeArgs {
  Decode d;
  uint32_t group_inverse;  // ceil(2**31 / (sub-blocks a group)), 0 with one group a row
};

// What a warp holds of the codes of 16 rows x decode_columns(BITS).
template <int BITS>
struct Codes {
  static constexpr int kColumns = decode_columns(BITS);
  static constexpr int kLowBits = BITS == 3 ? 2 : BITS;  // of the first plane
  static constexpr int kLow = kColumns * kLowBits / 256, kHigh = BITS == 3 ? kColumns / 256 : 0;  // tiles
  Words low[kLow], high[kHigh ? kHigh : 1];
};

// Word `index` (0 or 1) of row g (half 0) or g + 8 (half 1).
QK_HD uint32_t word_of(const Words& q, int half, int index) { return half ? (index ? q.w : q.z) : (index ? q.y : q.x); }

// Levels of two sub-blocks of 32 columns, pair `pair` of a batch: a[sub-block][half][i] holds columns 8 t + 2 i and + 1.
// `place` is the lane's: lane * 4, or lane * 8 for look-ups of 8 bytes.
template <int BITS>
__device__ __forceinline__ void decode_pair(const Codes<BITS>& codes, int pair, const unsigned char* table, uint32_t place,
                                            uint32_t (&a)[2][2][4]) {
  for (int half = 0; half < 2; half++) {
    if constexpr (BITS == 1 || BITS == 2) {
      const uint32_t word = BITS == 2 ? word_of(codes.low[pair / 2], half, pair % 2)
                                      : word_of(codes.low[pair / 4], half, pair / 2 % 2) >> (pair % 2 * 2);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Pair v = at<Pair>(table, permute(word, place, 0x7604u | unsigned(i) << 4));
        a[0][half][i] = v.x;
        a[1][half][i] = v.y;
      }
    } else if constexpr (BITS == 8) {
#pragma unroll
      for (int s = 0; s < 2; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32_t word = word_of(codes.low[2 * pair + s], half, i / 2);
          const uint32_t first = at<uint32_t>(table, permute(word, place, 0x7604u | unsigned(i % 2 * 2) << 4));
          const uint32_t second = at<uint32_t>(table, permute(word, place, 0x7604u | unsigned(i % 2 * 2 + 1) << 4));
          a[s][half][i] = permute(first, second, 0x5410u);
        }
    } else {
      uint32_t words[2];
      if constexpr (BITS == 4) {
        words[0] = word_of(codes.low[pair], half, 0);
        words[1] = word_of(codes.low[pair], half, 1);
      } else {
        constexpr uint32_t kBits01 = 0x33333333u, kBits23 = 0xccccccccu;
        const uint32_t low = word_of(codes.low[pair / 2], half, pair % 2), high = word_of(codes.high[pair / 4], half, pair / 2 % 2);
        words[0] = (low & kBits01) | ((pair % 2 ? high : high << 2) & kBits23);
        words[1] = (low & kBits23) | ((pair % 2 ? high >> 2 : high) & kBits01);
      }
#pragma unroll
      for (int s = 0; s < 2; s++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          a[s][half][i] = at<uint32_t>(table + (BITS == 3 ? s * 128 : 0), permute(words[s], place, 0x7604u | unsigned(i) << 4));
    }
  }
}

// The codes, as far as the table is concerned, that byte `row` stands for: the first and second of a pair, for look-up 0 and 1.
template <int BITS>
QK_HD void codes_of(int row, int (&c)[2][2]) {
  const int nibbles[2] = {row & 15, row >> 4};
  for (int i = 0; i < 2; i++) {
    const int v = nibbles[i];
    if constexpr (BITS == 1) c[0][i] = v & 1, c[1][i] = v >> 1 & 1;
    if constexpr (BITS == 2) c[0][i] = v & 3, c[1][i] = v >> 2;
    if constexpr (BITS == 3) c[0][i] = v & 7, c[1][i] = v >> 2 | (v >> 1 & 1) << 2;
    if constexpr (BITS == 4) c[0][i] = v, c[1][i] = 0;
    if constexpr (BITS == 8) c[0][i] = row, c[1][i] = 0;
  }
}

// What is left of v after the first `terms` values of type T that add up to it, as T.
template <class T>
QK_HD T term_of(float v, int term) {
  T t;
  from_float(v, &t);
  for (int i = 0; i < term; i++) {
    v -= to_float(t);  // exact
    from_float(v, &t);
  }
  return t;
}

// The largest v of the thread block; `shared` has kDecodeWarps floats that nothing else uses.
__device__ __forceinline__ float block_largest(float v, float* shared) {
  for (int offset = 16; offset; offset /= 2) v = larger(v, shuffle_down(v, offset));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
  __syncthreads();
  for (int w = 0; w < kDecodeWarps; w++) v = w ? larger(v, shared[w]) : shared[0];
  return v;
}

// Term `term` of the levels into the table. `rows` has 256 Pairs and may not be in use.
template <class T, int BITS>
__device__ __forceinline__ void fill_table(const Decode& d, int term, float unit, unsigned char* table, Pair* rows) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int c[2][2];
  codes_of<BITS>(int(threadIdx.x), c);
  uint32_t value[2][2];
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) value[i][j] = term_of<T>((c[i][j] < d.count ? d.w.levels[c[i][j]] : 0.0f) * unit, term).bits;
  rows[threadIdx.x] = {value[0][0] | value[0][1] << 16, value[1][0] | value[1][1] << 16};
  __syncthreads();
#pragma unroll 8
  for (int i = 0; i < 32; i++) {
    const int row = warp * 32 + i;
    const Pair v = rows[row];
    if constexpr (BITS == 1 || BITS == 2) {
      put(table, row * kTableRow + lane * 8, v);
    } else {
      put(table, row * kTableRow + lane * 4, v.x);
      if constexpr (BITS == 3) put(table, row * kTableRow + 128 + lane * 4, v.y);
    }
  }
}

// T: of x and y. NT: 8-column tiles of x^T, so 8 NT rows of x. FINE: groups that are not multiples of 128 columns.
template <class T, int BITS, int NT, bool FINE>
__global__ void __launch_bounds__(kDecodeThreads, 2) lut_decode_kernel(DecodeArgs args) {
  constexpr int kColumns = Codes<BITS>::kColumns, kLow = Codes<BITS>::kLow, kHigh = Codes<BITS>::kHigh;
  constexpr int kScales = FINE ? 4 : 1;       // scales for 128 columns
  constexpr int kAtOnce = NT == 4 ? 1 : 2;    // pairs of sub-blocks whose x is loaded together: as many as fit the registers
  const Decode& d = args.d;
  const Packed& w = d.w;
  unsigned char* table = dynamic_shared();
  float* part = reinterpret_cast<float*>(table + kTableBytes);  // [2][kDecodeWarps][kFragment]
  float* largest = part + 2 * kPartFloats;                      // [2][kDecodeWarps]
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, g = lane / 4, t = lane % 4;
  const uint32_t place = lane * (BITS <= 2 ? 8 : 4);

  // This thread block: rows of x from m0 on, stripes [first, last), batches [from, to) of each; this warp: batches [begin, end).
  const int64_t stripes = (w.N + kStripe - 1) / kStripe;
  const int tiles_m = int((d.M + 8 * NT - 1) / (8 * NT)), splits = d.plan.splits, warps = d.plan.warps, side = kDecodeWarps / warps;
  const int split = int(blockIdx.x) % splits, job = int(blockIdx.x) / splits;
  const int64_t m0 = int64_t(job % tiles_m) * 8 * NT;
  const int64_t first = int64_t(job / tiles_m) * d.plan.stripes;
  const int count = int(first + d.plan.stripes < stripes ? d.plan.stripes : stripes - first);
  const int batches = int((w.K + kColumns - 1) / kColumns);
  const int from = int(int64_t(batches) * split / splits), to = int(int64_t(batches) * (split + 1) / splits);
  const int begin = from + (to - from) * (warp % warps) / warps, end = from + (to - from) * (warp % warps + 1) / warps;

  // The next batch to load.
  const int low_tiles = int((w.K * Codes<BITS>::kLowBits + 255) / 256), high_tiles = int((w.K + 255) / 256);
  const uint8_t* low_plane = w.codes + first * low_tiles * kTile + lane * 16;
  const uint8_t* high_plane = w.codes + (stripes * low_tiles + first * high_tiles) * kTile + lane * 16;
  int next_batch = begin, next_term = 0, next_stripe = warp / warps;
  const uint8_t *next_low, *next_high = nullptr;
  int left_low, left_high = 0;  // tiles from there to the end of the stripe, 0 if there is no next batch
  const auto locate = [&] {
    const bool any = next_stripe < count && begin < end;
    const int low = next_batch * kLow, high = next_batch * kHigh;
    next_low = low_plane + (int64_t(next_stripe) * low_tiles + low) * kTile;
    left_low = any ? low_tiles - low : 0;
    if constexpr (BITS == 3) {
      next_high = high_plane + (int64_t(next_stripe) * high_tiles + high) * kTile;
      left_high = any ? high_tiles - high : 0;
    }
  };
  Codes<BITS> codes{};
  locate();
  for (int i = 0; i < kLow; i++) codes.low[i] = load_streamed(next_low + i * kTile, i < left_low, codes.low[i]);
  for (int i = 0; i < kHigh; i++) codes.high[i] = load_streamed(next_high + i * kTile, i < left_high, codes.high[i]);
  let_next_grid_start();

  const float level = int(threadIdx.x) < d.count ? w.levels[threadIdx.x] : 0.0f;
  float unit = 1, back = 1;
  if (sizeof(T) == sizeof(half) && std::is_same_v<T, half>) {
    const float size = pow2_floor(block_largest(absolute(level), largest));
    if (size > 0) unit = at_most(16384.0f / size, 0x1p126f), back = 1 / unit;
  }
  const float scaled = level * unit, rest = to_float(term_of<T>(scaled, 1)), last = to_float(term_of<T>(scaled, 2));
  const int terms = int(block_largest(last != 0 ? 3.0f : rest != 0 ? 2.0f : 1.0f, largest + kDecodeWarps));

  const uint8_t* rows[NT];  // of x; beyond the last row any will do, since what comes of it is not stored
  for (int j = 0; j < NT; j++) {
    const int64_t m = m0 + 8 * j + g;
    rows[j] = static_cast<const uint8_t*>(d.x) + ((m < d.M ? m : d.M - 1) * d.ld + t * 8) * 2;
  }

  float acc[NT][4] = {};
  int parity = 0;
  for (int round = 0; round * side < count; round++) {
    const int stripe = round * side + warp / warps;
    const float* scale = w.scale + (first + (stripe < count ? stripe : 0)) * w.G * kStripe + g;
    for (int term = 0; term < terms; term++) {
      if (terms > 1 || round == 0) {
        __syncthreads();  // nobody reads the table or the parts any more
        fill_table<T, BITS>(d, term, unit, table, reinterpret_cast<Pair*>(part));
        __syncthreads();
        if (round == 0 && term == 0) wait_for_previous_grid();  // from here on x is read
      }
      for (int batch = begin; stripe < count && batch < end; batch++) {
        if (++next_batch == end) {
          next_batch = begin;
          if (++next_term == terms) next_term = 0, next_stripe += side;
        }
        locate();
#pragma unroll
        for (int part128 = 0; part128 < kColumns / 128; part128++) {
          float s[kScales][2];
#pragma unroll
          for (int i = 0; i < kScales; i++) {
            const uint32_t block = uint32_t(batch * (kColumns / 32) + part128 * 4 + i), index = multiply_high(2 * block, args.group_inverse);
            const uint32_t group = index < uint32_t(w.G) ? index : uint32_t(w.G - 1);  // beyond K
            s[i][0] = scale[group * kStripe];
            s[i][1] = scale[group * kStripe + 8];
          }
          float sum[NT][4] = {};
          Words x[NT][2 * kAtOnce];
#pragma unroll
          for (int half_pair = 0; half_pair < 2; half_pair++) {
            const int pair = part128 * 2 + half_pair;
            if (half_pair % kAtOnce == 0)
#pragma unroll
              for (int i = 0; i < 2 * kAtOnce; i++)
#pragma unroll
                for (int j = 0; j < NT; j++) x[j][i] = load_cached(rows[j] + (int64_t(batch) * kColumns + pair * 64 + i * 32) * 2);
            uint32_t a[2][2][4];
            decode_pair<BITS>(codes, pair, table, place, a);
            // the tiles that this pair was the last to read
            constexpr int kPairs = 4 / Codes<BITS>::kLowBits;  // a tile
            if constexpr (BITS == 8) {
#pragma unroll
              for (int i = 2 * pair; i < 2 * pair + 2; i++) codes.low[i] = load_streamed(next_low + i * kTile, i < left_low, codes.low[i]);
            } else if ((pair + 1) % (kPairs ? kPairs : 1) == 0) {
              const int i = pair / (kPairs ? kPairs : 1);
              codes.low[i] = load_streamed(next_low + i * kTile, i < left_low, codes.low[i]);
            }
            if constexpr (BITS == 3)
              if (pair % 4 == 3) codes.high[pair / 4] = load_streamed(next_high + pair / 4 * kTile, pair / 4 < left_high, codes.high[pair / 4]);
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
              for (int step = 0; step < 2; step++) {
                const uint32_t fragment[4] = {a[i][0][2 * step], a[i][1][2 * step], a[i][0][2 * step + 1], a[i][1][2 * step + 1]};
#pragma unroll
                for (int j = 0; j < NT; j++) {
                  const Words& v = x[j][half_pair % kAtOnce * 2 + i];
                  const uint32_t b[2] = {step ? v.z : v.x, step ? v.w : v.y};
                  multiply_add<T>(sum[j], fragment, b);
                }
              }
              if (FINE || (half_pair == 1 && i == 1)) {  // the end of what shares a scale
                const float(&own)[2] = s[FINE ? half_pair * 2 + i : 0];
#pragma unroll
                for (int j = 0; j < NT; j++)
#pragma unroll
                  for (int v = 0; v < 4; v++) {
                    acc[j][v] = fused(own[v / 2], sum[j][v], acc[j][v]);
                    sum[j][v] = 0;
                  }
              }
            }
          }
        }
      }
    }
    // The warps' parts, added from the first to the last.
#pragma unroll
    for (int j = 0; j < NT; j++) {
      float* own = part + parity * kPartFloats + warp * kFragment + lane * 4;
#pragma unroll
      for (int v = 0; v < 4; v++) own[v] = acc[j][v], acc[j][v] = 0;
      __syncthreads();
      for (int v = int(threadIdx.x); v < side * kFragment; v += kDecodeThreads) {
        const int which = v / kFragment, row = v % kStripe, column = v / kStripe % 8;
        const float* in = part + parity * kPartFloats + which * warps * kFragment + (row % 8 * 4 + column / 2) * 4 + row / 8 * 2 + column % 2;
        float total = in[0];
        for (int i = 1; i < warps; i++) total += in[i * kFragment];
        const int64_t m = m0 + 8 * j + column, n = (first + round * side + which) * kStripe + row;
        if (round * side + which < count && n < w.N && m < d.M) {
          total *= back;
          if (splits > 1) d.partial[(split * d.M + m) * w.N + n] = total;
          else from_float(d.bias ? total + d.bias[n] : total, static_cast<T*>(d.y) + m * w.N + n);
        }
      }
      parity ^= 1;  // who is ahead writes the other half
    }
  }
}

// y from the parts of the thread blocks, from the first to the last.
template <class T>
__global__ void __launch_bounds__(kDecodeThreads) lut_reduce_kernel(DecodeArgs args) {
  const Decode& d = args.d;
  const int64_t size = d.M * d.w.N;
  wait_for_previous_grid();
  for (int64_t i = int64_t(blockIdx.x) * kDecodeThreads + threadIdx.x; i < size; i += int64_t(gridDim.x) * kDecodeThreads) {
    float total = d.partial[i];
    for (int s = 1; s < d.plan.splits; s++) total += d.partial[s * size + i];
    from_float(d.bias ? total + d.bias[i % d.w.N] : total, static_cast<T*>(d.y) + i);
  }
}

template <class T, int BITS, int NT, bool FINE>
cudaError_t lut_decode(const Decode& d, cudaStream_t stream) {
  const int64_t blocks = d.w.group / 32;  // of 32 columns
  const DecodeArgs args{d, d.w.G == 1 ? 0 : uint32_t(((int64_t(1) << 31) + blocks - 1) / blocks)};
  const int64_t stripes = (d.w.N + kStripe - 1) / kStripe, tiles_m = (d.M + 8 * NT - 1) / (8 * NT);
  const int64_t grid = (stripes + d.plan.stripes - 1) / d.plan.stripes * tiles_m * d.plan.splits;
  cudaError_t e = launch_shared(lut_decode_kernel<T, BITS, NT, FINE>, unsigned(grid), kDecodeThreads, kDecodeShared, stream, args);
  if (e != cudaSuccess || d.plan.splits == 1) return e;
  const int64_t wanted = (d.M * d.w.N + kDecodeThreads - 1) / kDecodeThreads;
  return launch_shared(lut_reduce_kernel<T>, unsigned(wanted < 65536 ? wanted : 65536), kDecodeThreads, 0, stream, args);
}

template <class T, int BITS, bool FINE>
cudaError_t lut_decode_rows(const Decode& d, cudaStream_t stream) {
  if (d.M <= 8) return lut_decode<T, BITS, 1, FINE>(d, stream);
  if (d.M <= 16) return lut_decode<T, BITS, 2, FINE>(d, stream);
  return lut_decode<T, BITS, 4, FINE>(d, stream);
}

template <class T, int BITS>
cudaError_t lut_decode_groups(const Decode& d, cudaStream_t stream) {
  const bool fine = d.w.G > 1 && d.w.group % 128 != 0;
  return fine ? lut_decode_rows<T, BITS, true>(d, stream) : lut_decode_rows<T, BITS, false>(d, stream);
}

// Every kernel of one width.
#define QK_LUT_DECODE(BITS)                                                                  \
  template <>                                                                                \
  cudaError_t lut_decode_cuda<BITS>(const Decode& d, bool bfloat16, cudaStream_t stream) {   \
    return bfloat16 ? lut_decode_groups<bfloat, BITS>(d, stream) : lut_decode_groups<half, BITS>(d, stream); \
  }

}  // namespace qk
