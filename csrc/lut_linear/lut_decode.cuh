// y [M, N] = x [M, K] times a packed weight, for few rows of x: bound by the bytes of the weight.
//
// A thread block works on stripes of 16 rows of the weight. Its warps split K: each streams its own part of a stripe from memory
// straight to registers, 512 bytes a load (T16 is in the order of the fragments of mma.m16n8k16: qkernels/pack.py), turns codes
// to pairs of levels through a table in shared memory, and multiplies, also for one row of x. Nothing is waited for inside: the
// registers of a load are filled again, for the batch after this one, as soon as they have been read. Warps, then thread
// blocks, add their parts in a fixed order that does not depend on M.
//
// The table has a row for each value of a byte of codes, 256 bytes apart, and in each row one or two places for each lane. So the
// address of a look-up is one `permute`: byte 0 is the lane's place, byte 1 the byte of codes; and a lane always meets its own banks.
//
//   bits  a byte of codes holds              instructions a weight
//   4     2 codes                            1: permute, look up, for 2 levels
//   2     2 codes of each of 2 sub-blocks    0.5: permute, look up 8 bytes, for 4 levels
//   1     2 codes of each of 4; the word is  0.53
//         shifted by 2 for the other two
//   3     2 codes, put together from two     1.19: for 32 levels 2 shifts, 4 selections, 16 permutes, 16 look-ups
//         planes
//   8     1 code, which gives its level      2.5: the levels come in twos, a further permute joins them
//         twice
//
// A nibble of 3 bits: sub-blocks A and C have the low bits of a code in bits 0-1 and the high bit in bit 2; B and D in bits 2-3 and
// bit 1, so that two of four need no shift. They have a place each. Bits that belong to others are ignored: the table's rows repeat
// over them.
//
// 1 and 2 bits ("paired"): a look-up of 8 bytes fills two registers side by side with levels of one row and sub-blocks A and B. In a
// fragment of the weight such registers are rows g and g + 8. So both are called the same row, sub-block A its first half and B its
// second, and four rows of x stand in x^T twice: columns 0-3 of the tile are their sub-block A, 4-7 their sub-block B. Of the
// product, A times A and B times B are used: columns 0-3 of rows g and 4-7 of rows g + 8. No register is moved.
//
// Levels that x's dtype cannot hold are not rounded: they become a sum of up to three terms that it can, and K is gone through once
// for each term. One term is enough for integers and other exact levels; the kernel finds out by itself. float16 has few
// exponents, so its levels are first scaled by a power of two that brings the largest to [2**14, 2**15), and the sums back.
#pragma once
#include <type_traits>
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
  uint32_t group_inverse;              // ceil(2**31 / s), s sub-blocks a group: the high half of 2 i times it is i / s; 0: one group
  uint32_t last_group;
  int stripes, low_tiles, high_tiles;  // tiles: of a stripe of the first plane and, with 3 bits, of the second
  int batches;                         // of a stripe, decode_columns(BITS) each
};

// What a warp holds of the codes of 16 rows x decode_columns(BITS).
template <int BITS>
struct Codes {
  static constexpr int kColumns = decode_columns(BITS);
  static constexpr int kLowBits = BITS == 3 ? 2 : BITS;  // of the first plane
  static constexpr int kLow = kColumns * kLowBits / 256, kHigh = BITS == 3 ? kColumns / 256 : 0;  // tiles
  Words low[kLow], high[kHigh ? kHigh : 1];
};

template <int BITS>
constexpr bool is_paired = BITS <= 2;
// Rows of x in a tile of 8 columns of x^T.
template <int BITS>
constexpr int tile_rows = is_paired<BITS> ? 4 : 8;
// Where in a row of the table sub-block s of a pair has its levels, unless paired. 4 and 8 bits: all have the same.
template <int BITS>
QK_HD constexpr int place_of(int s) { return BITS == 3 ? s * kTableRow / 2 : 0; }

// Word `index` (0 or 1) of row g (half 0) or g + 8 (half 1).
QK_HD uint32_t word_of(const Words& q, int half, int index) { return half ? (index ? q.w : q.z) : (index ? q.y : q.x); }

// Levels of two sub-blocks of 32 columns, pair `pair` of a batch: a[sub-block][half][i] holds columns 8 t + 2 i and + 1 of row g
// or g + 8. Paired: a[half][i / 2] is a fragment, and i % 2 * 2 + sub-block the register in it.
template <int BITS>
__device__ __forceinline__ void decode_pair(const Codes<BITS>& codes, int pair, const unsigned char* table, uint32_t place,
                                            uint32_t (&a)[2][2][4]) {
  // A look-up by byte i of a word.
  const auto address = [&](uint32_t word, int i) { return permute(word, place, 0x7604u | unsigned(i) << 4); };
#pragma unroll
  for (int half = 0; half < 2; half++)
    if constexpr (is_paired<BITS>) {
      const uint32_t word = BITS == 2 ? word_of(codes.low[pair / 2], half, pair % 2)
                                      : word_of(codes.low[pair / 4], half, pair / 2 % 2) >> (pair % 2 * 2);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const Pair v = at<Pair>(table, address(word, i));
        a[half][i / 2][i % 2 * 2] = v.x;
        a[half][i / 2][i % 2 * 2 + 1] = v.y;
      }
    } else if constexpr (BITS == 8) {
#pragma unroll
      for (int s = 0; s < 2; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32_t word = word_of(codes.low[2 * pair + s], half, i / 2);
          const uint32_t first = at<uint32_t>(table, address(word, i % 2 * 2)), next = at<uint32_t>(table, address(word, i % 2 * 2 + 1));
          a[s][half][i] = permute(first, next, 0x5410u);
        }
    } else {
      uint32_t words[2];  // of the two sub-blocks
      if constexpr (BITS == 4) {
        words[0] = word_of(codes.low[pair], half, 0);
        words[1] = word_of(codes.low[pair], half, 1);
      } else {
        const uint32_t low = word_of(codes.low[pair / 2], half, pair % 2), high = word_of(codes.high[pair / 4], half, pair / 2 % 2);
        words[0] = blend(low, pair % 2 ? high : high << 2, 0x33333333u);
        words[1] = blend(low, pair % 2 ? high >> 2 : high, 0xccccccccu);
      }
#pragma unroll
      for (int s = 0; s < 2; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) a[s][half][i] = at<uint32_t>(table + place_of<BITS>(s), address(words[s], i));
    }
}

// The codes that byte `row` stands for: the first and second of two columns, of sub-blocks 0 and 1 of a pair.
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

// The levels times `unit` are sums of `count` values of type T. `largest` has 2 kDecodeWarps floats that nothing else uses.
struct Terms { float unit; int count; };
template <class T>
__device__ __forceinline__ Terms terms_of(const Decode& d, float* largest) {
  const float level = int(threadIdx.x) < d.count ? d.w.levels[threadIdx.x] : 0.0f;
  float unit = 1;
  if constexpr (std::is_same_v<T, half>) {
    const float size = pow2_floor(block_largest(absolute(level), largest));
    if (size > 0) unit = at_most(16384.0f / size, 0x1p126f);
  }
  const float scaled = level * unit, rest = to_float(term_of<T>(scaled, 1)), last = to_float(term_of<T>(scaled, 2));
  return {unit, of_warp(int(block_largest(last != 0 ? 3.0f : rest != 0 ? 2.0f : 1.0f, largest + kDecodeWarps)))};
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
    if constexpr (is_paired<BITS>) {
      put(table, row * kTableRow + lane * 8, v);
    } else {
      put(table, row * kTableRow + lane * 4, v.x);
      if constexpr (BITS == 3) put(table, row * kTableRow + place_of<3>(1) + lane * 4, v.y);
    }
  }
}

// T: of x and y. NT: 8-column tiles of x^T, tile_rows<BITS> rows of x each; 1 or 2, and 1 if FINE, else the registers do not suffice.
// FINE: groups that are not multiples of 128 columns. S: of scales; float or, but not if FINE, whose loop is long as it is, T.
template <class T, int BITS, int NT, bool FINE, class S>
__global__ void __launch_bounds__(kDecodeThreads, 2) lut_decode_kernel(DecodeArgs args) {
  constexpr int kColumns = Codes<BITS>::kColumns, kLow = Codes<BITS>::kLow, kHigh = Codes<BITS>::kHigh;
  constexpr bool kPaired = is_paired<BITS>;
  constexpr int kRows = tile_rows<BITS>, kHalves = kPaired ? 2 : 1;
  constexpr int kUnits = kPaired ? 2 : 4;         // loads of x a row and 128 columns: of both sub-blocks of a pair, or of one
  constexpr int kAtOnce = (kPaired || FINE || BITS == 3 ? 2 : 4) / NT;  // of these together: as many as the registers hold
  constexpr int kScales = FINE ? kUnits : 1;      // for 128 columns
  const Decode& d = args.d;
  const Packed& w = d.w;
  unsigned char* table = dynamic_shared();
  float* part = reinterpret_cast<float*>(table + kTableBytes);  // [2][kDecodeWarps][kFragment]
  float* largest = part + 2 * kPartFloats;                      // [2][kDecodeWarps]
  const int lane = int(threadIdx.x) % 32, warp = of_warp(int(threadIdx.x) / 32);
  const uint32_t place = lane * (kPaired ? 8 : 4);
  const int second = kPaired ? lane % 4 / 2 : 0;  // which sub-block the columns of the product are of that this lane has

  // This thread block: rows of x from m0 on, stripes [first, first + count), K's part `split`. These are computed where they are
  // used: the main loop needs the registers.
  const auto m0 = [] { return fresh(int(blockIdx.x)) * kRows * NT; };
  const auto first = [&] { return fresh(int(blockIdx.y)) * d.plan.stripes; };
  const auto count = [&] {
    const int left = args.stripes - first();
    return left < d.plan.stripes ? left : d.plan.stripes;
  };
  const int warps = d.plan.warps, side = kDecodeWarps / warps;
  int begin, end;  // this warp's batches of each stripe
  {
    const int splits = d.plan.splits, split = int(blockIdx.z);
    const int from = int(int64_t(args.batches) * split / splits), to = int(int64_t(args.batches) * (split + 1) / splits);
    begin = from + (to - from) * (warp % warps) / warps;
    end = from + (to - from) * (warp % warps + 1) / warps;
  }

  // The batch after the one in hand: its tiles, and how many there are up to the end of its stripe; 0: there is none.
  const int stripe0 = first() + warp / warps;
  const uint8_t* next_low = w.codes + (int64_t(stripe0) * args.low_tiles + begin * kLow) * kTile + lane * 16;
  int next_high = args.stripes * args.low_tiles + stripe0 * args.high_tiles + begin * kHigh;  // among the tiles of both planes
  int left = begin < end && warp / warps < count() ? args.low_tiles - begin * kLow : 0;
  Codes<BITS> codes{};
  const auto load_low = [&](int i) { return load_streamed(next_low + i * kTile, i < left, codes.low[i]); };
  const auto load_high = [&](int i) {  // a tile of 256 columns is there if its first 128 are
    return load_streamed(w.codes + (int64_t(next_high) + i) * kTile + fresh(lane) * 16, 2 * i < left, codes.high[i]);
  };
#pragma unroll
  for (int i = 0; i < kLow; i++) codes.low[i] = load_low(i);
#pragma unroll
  for (int i = 0; i < kHigh; i++) codes.high[i] = load_high(i);
  let_next_grid_start();
  wait_for_previous_grid();  // from here on x is read, and levels and scales, which may train

  const auto [unit, terms] = terms_of<T>(d, largest);

  const uint8_t* x_rows[NT];  // at this warp's first batch. Beyond the last row any will do: what comes of it is not stored
#pragma unroll
  for (int j = 0; j < NT; j++) {
    const int64_t m = m0() + kRows * j + lane / 4 % kRows, k = int64_t(begin) * kColumns + lane / (4 * kRows) * 32 + lane % 4 * 8;
    x_rows[j] = static_cast<const uint8_t*>(d.x) + ((m < d.M ? m : d.M - 1) * d.ld + k) * 2;
  }

  float acc[NT][4] = {};
  for (int round = 0; round * side < count(); round++) {
    const int stripe = round * side + warp / warps;
    const uint32_t scales = uint32_t(first() + stripe) * uint32_t(w.G) * kStripe + fresh(lane) / 4;  // the first of row g
    for (int term = 0; term < terms; term++) {
      if (terms > 1 || round == 0) {
        __syncthreads();  // nobody reads the table or the parts any more
        fill_table<T, BITS>(d, term, unit, table, reinterpret_cast<Pair*>(part));
        __syncthreads();
      }
      if (stripe >= count()) continue;
#pragma unroll 1
      for (int batch = begin; batch < end; batch++) {
        next_low += kLow * kTile;
        next_high += kHigh;
        left -= kLow;
        if (batch + 1 == end) {  // again from the start: another term, or another stripe
          const bool again = term + 1 < terms;
          const int start = fresh(begin);
          next_low += (int64_t(again ? 0 : side) * args.low_tiles - (end - start) * kLow) * kTile;
          next_high += (again ? 0 : side) * args.high_tiles - (end - start) * kHigh;
          left = again || (round + 1) * side + warp / warps < count() ? args.low_tiles - start * kLow : 0;
        }
#pragma unroll
        for (int part128 = 0; part128 < kColumns / 128; part128++) {
          float s[kScales][2];
#pragma unroll
          for (int i = 0; i < kScales; i++) {
            const uint32_t block = uint32_t(batch * (kColumns / 32) + part128 * 4 + i * (4 / kUnits) + (FINE ? second : 0));
            const uint32_t index = multiply_high(2 * block, args.group_inverse);
            const uint32_t group = index < args.last_group ? index : args.last_group;  // beyond K
            const S* of_rows = static_cast<const S*>(w.scale.data) + (scales + group * kStripe);
            s[i][0] = to_float(of_rows[0]), s[i][1] = to_float(of_rows[8]);
          }
          float sum[NT][kHalves][4] = {};
          Words x[NT][kAtOnce];
          uint32_t a[2][2][4];
#pragma unroll
          for (int unit_x = 0; unit_x < kUnits; unit_x++) {
            const int pair = part128 * 2 + unit_x * 2 / kUnits, i = kPaired ? 0 : unit_x % 2;
            if (unit_x % kAtOnce == 0)
#pragma unroll
              for (int at_once = 0; at_once < kAtOnce; at_once++)
#pragma unroll
                for (int j = 0; j < NT; j++)
                  x[j][at_once] = load_cached(x_rows[j] + (part128 * kUnits + unit_x + at_once) * (256 / kUnits));
            if (i == 0) {
              decode_pair<BITS>(codes, pair, table, place, a);
              // The tiles that this pair was the last to read are loaded anew.
              if constexpr (BITS == 8) {
#pragma unroll
                for (int tile = 2 * pair; tile < 2 * pair + 2; tile++) codes.low[tile] = load_low(tile);
              } else {
                constexpr int kPairs = 4 / Codes<BITS>::kLowBits;  // a tile
                const int tile = pair / kPairs;
                if (pair % kPairs == kPairs - 1) codes.low[tile] = load_low(tile);
                if constexpr (BITS == 3)
                  if (pair % 4 == 3) codes.high[pair / 4] = load_high(pair / 4);
              }
            }
#pragma unroll
            for (int step = 0; step < 2; step++)
#pragma unroll
              for (int half = 0; half < kHalves; half++) {
                uint32_t fragment[4];
#pragma unroll
                for (int v = 0; v < 4; v++) fragment[v] = kPaired ? a[half][step][v] : a[i][v % 2][2 * step + v / 2];
#pragma unroll
                for (int j = 0; j < NT; j++) {
                  const Words& v = x[j][unit_x % kAtOnce];
                  const uint32_t b[2] = {step ? v.z : v.x, step ? v.w : v.y};
                  multiply_add<T>(sum[j][half], fragment, b);
                }
              }
            if (FINE || unit_x == kUnits - 1)  // the end of what shares a scale
#pragma unroll
              for (int j = 0; j < NT; j++) {
#pragma unroll
                for (int v = 0; v < 4; v++) {
                  const float product = !kPaired ? sum[j][0][v] : second ? sum[j][v / 2][2 + v % 2] : sum[j][v / 2][v % 2];
                  acc[j][v] = fused(s[FINE ? unit_x : 0][v / 2], product, acc[j][v]);
                }
#pragma unroll
                for (int half = 0; half < kHalves; half++)
#pragma unroll
                  for (int v = 0; v < 4; v++) sum[j][half][v] = 0;
              }
          }
        }
#pragma unroll
        for (int j = 0; j < NT; j++) x_rows[j] += kColumns * 2;
      }
#pragma unroll
      for (int j = 0; j < NT; j++) x_rows[j] -= int64_t(end - begin) * kColumns * 2;
    }
    // The warps' parts, added from the first to the last.
#pragma unroll
    for (int j = 0; j < NT; j++) {
      float* parts = part + (round * NT + j) % 2 * kPartFloats;  // two in turn: who is ahead writes the other
#pragma unroll
      for (int v = 0; v < 4; v++) parts[fresh(int(threadIdx.x)) * 4 + v] = acc[j][v], acc[j][v] = 0;
      __syncthreads();
      for (int v = fresh(int(threadIdx.x)); v < side * kStripe * kRows; v += kDecodeThreads) {
        const int which = v / (kStripe * kRows), row = v % kStripe, column = v / kStripe % kRows;
        const float* in = parts + which * warps * kFragment + (row % 8 * 4 + column / 2) * 4 + row / 8 * 2 + column % 2;
        float total = 0;
        for (int i = 0; i < warps; i++) total += kPaired ? in[i * kFragment] + in[i * kFragment + 8] : in[i * kFragment];
        if constexpr (std::is_same_v<T, half>) total /= unit;  // a power of two
        const int64_t m = m0() + kRows * j + column, n = int64_t(first() + round * side + which) * kStripe + row;
        if (round * side + which < count() && n < w.N && m < d.M) {
          if (d.plan.splits > 1) d.partial[(int(blockIdx.z) * d.M + m) * w.N + n] = total;
          else from_float(d.bias ? total + d.bias[n] : total, static_cast<T*>(d.y) + m * w.N + n);
        }
      }
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

template <int BITS>
DecodeArgs decode_args(const Decode& d) {
  const int64_t blocks = d.w.group / 32;  // of 32 columns
  return {d,
          d.w.G == 1 ? 0 : uint32_t(((int64_t(1) << 31) + blocks - 1) / blocks),
          uint32_t(d.w.G - 1),
          int((d.w.N + kStripe - 1) / kStripe),
          int((d.w.K * Codes<BITS>::kLowBits + 255) / 256),
          int((d.w.K + 255) / 256),
          int((d.w.K + decode_columns(BITS) - 1) / decode_columns(BITS))};
}

template <class T>
cudaError_t lut_reduce(const DecodeArgs& args, cudaStream_t stream) {
  const int64_t wanted = (args.d.M * args.d.w.N + kDecodeThreads - 1) / kDecodeThreads;
  return launch_shared(lut_reduce_kernel<T>, {unsigned(wanted < 65536 ? wanted : 65536), 1, 1}, kDecodeThreads, 0, args.d.plan.early, stream, args);
}

template <class T, int BITS, int NT, bool FINE>
cudaError_t lut_decode(const Decode& d, cudaStream_t stream) {
  const DecodeArgs args = decode_args<BITS>(d);
  // Thread blocks that read the same part of the weight start one after another.
  constexpr int kRows = tile_rows<BITS> * NT;
  const Grid grid{unsigned((d.M + kRows - 1) / kRows), unsigned((args.stripes + d.plan.stripes - 1) / d.plan.stripes),
                  unsigned(d.plan.splits)};
  const auto launch = [&](auto kernel) { return launch_shared(kernel, grid, kDecodeThreads, kDecodeShared, d.plan.early, stream, args); };
  cudaError_t e;
  if constexpr (FINE) e = launch(lut_decode_kernel<T, BITS, NT, FINE, float>);
  else e = d.w.scale.dtype ? launch(lut_decode_kernel<T, BITS, NT, FINE, T>) : launch(lut_decode_kernel<T, BITS, NT, FINE, float>);
  return e == cudaSuccess && d.plan.splits > 1 ? lut_reduce<T>(args, stream) : e;
}

template <class T, int BITS, bool FINE>
cudaError_t lut_decode_rows(const Decode& d, cudaStream_t stream) {
  if constexpr (!FINE)
    if (d.M > tile_rows<BITS>) return lut_decode<T, BITS, 2, FINE>(d, stream);
  return lut_decode<T, BITS, 1, FINE>(d, stream);
}

template <class T, int BITS>
cudaError_t lut_decode_groups(const Decode& d, cudaStream_t stream) {
  return is_fine(d.w.group, d.w.K) ? lut_decode_rows<T, BITS, true>(d, stream) : lut_decode_rows<T, BITS, false>(d, stream);
}

// Every kernel of one width.
#define QK_LUT_DECODE(BITS)                                                                  \
  template <>                                                                                \
  cudaError_t lut_decode_cuda<BITS>(const Decode& d, bool bfloat16, cudaStream_t stream) {   \
    return bfloat16 ? lut_decode_groups<bfloat, BITS>(d, stream) : lut_decode_groups<half, BITS>(d, stream); \
  }

}  // namespace qk
