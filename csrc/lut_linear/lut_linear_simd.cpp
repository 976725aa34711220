// Packed weights on the CPU, plainly: decode a stripe of 16 rows x 256 columns to one byte a code, look the levels up sixteen
// at a time, multiply. Every activation row adds in the same order whatever M is.
#include "../common/simd.h"
#include "lut_linear.h"

namespace {

using qk::kSpan;
using qk::kStripe;
using qk::Packed;

// Nibble i of a word -> byte i.
QK_IN uint64_t spread(uint32_t word) {
  uint64_t x = word;
  x = (x | x << 16) & 0x0000ffff0000ffffull;
  x = (x | x << 8) & 0x00ff00ff00ff00ffull;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0full;
}

struct Plane {
  const uint8_t* stripe;  // 512-byte tiles
  int64_t tiles;
};

// ORs the p-bit codes of 256 columns from column `start` on, shifted left, into codes [16][256].
template <int p>
void decode_plane(Plane plane, int64_t start, int shift, uint8_t (*codes)[kSpan]) {
  constexpr int kWidth = 256 / p;
  for (int64_t tile = start / kWidth; tile < plane.tiles && tile * kWidth < start + kSpan; tile++)
    for (int lane = 0; lane < 32; lane++)
      for (int half = 0; half < 2; half++) {
        const uint8_t* bytes = plane.stripe + tile * 512 + lane * 16 + half * 8;
        uint8_t* out = codes[lane / 4 + 8 * half] + (tile * kWidth - start) + lane % 4 * 8;
        if constexpr (p == 8) {
          memcpy(out, bytes, 8);
        } else {
          constexpr int kBlocks = 4 / p;  // sub-blocks of 32 columns a word
          for (int word = 0; word < 2; word++) {
            uint32_t w;
            memcpy(&w, bytes + 4 * word, 4);
            const uint64_t nibbles = spread(w);
            for (int block = 0; block < kBlocks; block++) {
              const uint64_t part = (nibbles >> (block * p) & (0x0101010101010101ull * ((1u << p) - 1))) << shift;
              uint8_t* to = out + (word * kBlocks + block) * 32;
              uint64_t before;
              memcpy(&before, to, 8);
              before |= part;
              memcpy(to, &before, 8);
            }
          }
        }
      }
}

void decode(const Packed& w, int64_t stripe, int64_t start, uint8_t (*codes)[kSpan]) {
  memset(codes, 0, kStripe * kSpan);
  const auto plane = [&](int p, const uint8_t* first) {
    const int64_t tiles = (w.K + 256 / p - 1) / (256 / p);
    return Plane{first + stripe * tiles * 512, tiles};
  };
  switch (w.bits) {
    case 1: return decode_plane<1>(plane(1, w.codes), start, 0, codes);
    case 2: return decode_plane<2>(plane(2, w.codes), start, 0, codes);
    case 4: return decode_plane<4>(plane(4, w.codes), start, 0, codes);
    case 8: return decode_plane<8>(plane(8, w.codes), start, 0, codes);
  }
  decode_plane<2>(plane(2, w.codes), start, 0, codes);  // 3 bits: the high bit lies in a plane of its own, behind the first
  const int64_t stripes = (w.N + kStripe - 1) / kStripe, low_tiles = (w.K + 127) / 128;
  decode_plane<1>(plane(1, w.codes + stripes * low_tiles * 512), start, 2, codes);
}

// Sixteen levels by their codes.
struct LargeTable {
  const float* levels;
  QK_HD explicit LargeTable(const float* l) : levels(l) {}
  QK_HD F operator()(const uint8_t* codes) const {
    float values[kLanes];
    for (int i = 0; i < kLanes; i++) values[i] = levels[codes[i]];
    return load(values);
  }
};
#if QK_ISA == 512
struct SmallTable {  // up to 16 levels, in one register
  __m512 t;
  QK_HD explicit SmallTable(const float* l) : t(_mm512_loadu_ps(l)) {}
  QK_HD F operator()(const uint8_t* codes) const {
    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes))), t);
  }
};
#elif QK_ISA == 2
struct SmallTable {  // two registers of 8: bit 3 of the code chooses
  __m256 low, high;
  QK_HD explicit SmallTable(const float* l) : low(_mm256_loadu_ps(l)), high(_mm256_loadu_ps(l + 8)) {}
  QK_HD __m256 eight(const uint8_t* codes) const {
    const __m256i i = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i),
                            _mm256_castsi256_ps(_mm256_slli_epi32(i, 28)));
  }
  QK_HD F operator()(const uint8_t* codes) const { return {eight(codes), eight(codes + 8)}; }
};
#else
using SmallTable = LargeTable;
#endif

int64_t lower(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Table>
void dequantize_stripes(const Packed& w, int64_t begin, int64_t end, float* out) {
  const Table table(w.levels);
  uint8_t codes[kStripe][kSpan];
  for (int64_t stripe = begin; stripe < end; stripe++)
    for (int64_t start = 0; start < w.K; start += kSpan) {
      decode(w, stripe, start, codes);
      const int64_t stop = lower(start + kSpan, w.K);
      for (int row = 0; row < lower(kStripe, w.N - stripe * kStripe); row++)
        for (int64_t k = start; k < stop;) {
          const int64_t g = k / w.group, edge = lower(stop, (g + 1) * w.group);
          const F scale(w.scale[(stripe * w.G + g) * kStripe + row]);
          float* to = out + (stripe * kStripe + row) * w.K;
          for (; k < edge; k += kLanes) {
            const F value = table(codes[row] + (k - start)) * scale + F(0.0f);  // never -0
            if (edge - k >= kLanes) store(to + k, value);
            else store_part(to + k, value, edge - k);
          }
          k = edge;
        }
    }
}

template <class Table>
void linear_stripes(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t ld, const float* bias,
                    float* y, float* sums) {
  constexpr int kColumns = 4;  // activation rows that share a look-up
  const Table table(w.levels);
  uint8_t codes[kStripe][kSpan];
  for (int64_t stripe = begin; stripe < end; stripe++) {
    const int rows = int(lower(kStripe, w.N - stripe * kStripe));
    memset(sums, 0, M * kStripe * kLanes * sizeof(float));
    for (int64_t start = 0; start < w.K; start += kSpan) {
      decode(w, stripe, start, codes);
      const int64_t stop = lower(start + kSpan, w.K);
      for (int64_t m0 = 0; m0 < M; m0 += kColumns) {
        const int columns = int(lower(kColumns, M - m0));
        for (int row = 0; row < rows; row++)
          for (int64_t k = start; k < stop;) {
            const int64_t g = k / w.group, edge = lower(stop, (g + 1) * w.group);
            F d[kColumns];
            for (F& v : d) v = F(0.0f);
            for (; k < edge; k += kLanes) {  // a group ends on a multiple of 16 or with K, where x is 0
              const F level = table(codes[row] + (k - start));
              if (columns == kColumns)
                for (int c = 0; c < kColumns; c++) d[c] = d[c] + level * load(x + (m0 + c) * ld + k);
              else
                for (int c = 0; c < columns; c++) d[c] = d[c] + level * load(x + (m0 + c) * ld + k);
            }
            k = edge;
            const F scale(w.scale[(stripe * w.G + g) * kStripe + row]);
            for (int c = 0; c < columns; c++) {
              float* s = sums + ((m0 + c) * kStripe + row) * kLanes;
              store(s, load(s) + d[c] * scale);
            }
          }
      }
    }
    for (int64_t m = 0; m < M; m++)
      for (int row = 0; row < rows; row++) {
        const int64_t n = stripe * kStripe + row;
        y[m * w.N + n] = float(sum(load(sums + (m * kStripe + row) * kLanes)) + (bias ? double(bias[n]) : 0.0));
      }
  }
}

void dequantize(const Packed& w, int64_t begin, int64_t end, float* out) {
  if (w.bits <= 4) dequantize_stripes<SmallTable>(w, begin, end, out);
  else dequantize_stripes<LargeTable>(w, begin, end, out);
}

void linear(const Packed& w, int64_t begin, int64_t end, const float* x, int64_t M, int64_t ld, const float* bias, float* y,
            float* sums) {
  if (w.bits <= 4) linear_stripes<SmallTable>(w, begin, end, x, M, ld, bias, y, sums);
  else linear_stripes<LargeTable>(w, begin, end, x, M, ld, bias, y, sums);
}

}  // namespace

namespace qk {
extern const LutKernels QK_NAME(lut);
const LutKernels QK_NAME(lut) = {dequantize, linear};
}  // namespace qk
