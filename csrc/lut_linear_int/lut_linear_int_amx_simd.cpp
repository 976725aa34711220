// lut_linear_int.h for many rows of x, by the matrix tiles of AMX-INT8: a T16 tile of 4-bit codes, 64 columns of a stripe, is decoded to
// one tile of bytes for the even and one for the odd levels, whose rows lie in the order of x's bytes as it is. Integers: the
// bits are those of the other kernels.
#include "../common/simd.h"
#include "lut_linear_int.h"

#if QK_ISA == 512
#include "../common/amx.h"
#include "../common/t16_simd.h"

namespace {

using qk::PostAmx;
using qk::PostKernels;
using qk::PostWeight;

struct W { __m512i v; };

// Tiles 0 to 3: sums of tile i of x, even ones 2 i and odd ones 2 i + 1; 4 and 5 x, 6 and 7 weights.
template <bool is_signed, bool has_odd> struct Stripe {
  static constexpr int kBytes = has_odd ? 2048 : 1024;  // of a decoded T16 tile
  const PostWeight& w;
  const uint8_t* const x;
  const int64_t M, tiles, each;
  uint8_t* const decoded;
  float* const totals;  // [M][16]
  __m512i even, odd;

  static __m512i table(const int8_t* t) {  // without the offset that the other kernels need for signed x
    const __m128i offset = _mm_set1_epi8(is_signed ? PostKernels::kOffset : 0);
    return _mm512_maskz_broadcast_i32x4(0xffff, _mm_sub_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t)), offset));
  }
  QK_HD void decode(const uint8_t* codes, int64_t t) const {
    W words[8];
    codes += t * 512;
    for (int line = 0; line < 512; line += 64) __builtin_prefetch(codes + 2048 + line);
    transpose_tile(codes, words);
    const __m512i low = _mm512_set1_epi8(15), e = even, o = odd;
    uint8_t* to = decoded + t % PostAmx::kTiles * kBytes;
    QK_UNROLL for (int i = 0; i < 8; i++)
      for (int part = 0; part < 2; part++) {
        const __m512i code = _mm512_and_si512(part ? _mm512_srli_epi16(words[i].v, 4) : words[i].v, low);
        _mm512_store_si512(to + (2 * i + part) * 64, _mm512_shuffle_epi8(e, code));
        if (has_odd) _mm512_store_si512(to + 1024 + (2 * i + part) * 64, _mm512_shuffle_epi8(o, code));
      }
  }
  template <int n> QK_HD void multiply(int64_t i, int64_t t) const {
    const int64_t tile = each * w.blocks() * 32;
    const uint8_t *from = x + i * tile + t * each * 64, *weights = decoded + t % PostAmx::kTiles * kBytes;
    tile_load<4>(from);
    if constexpr (n == 2) tile_load<5>(from + tile);
    tile_load<6>(weights);
    tile_dot_bytes<0, 4, 6, is_signed, true>();
    if constexpr (n == 2) tile_dot_bytes<2, 5, 6, is_signed, true>();
    if constexpr (has_odd) {
      tile_load<7>(weights + 1024);
      tile_dot_bytes<1, 4, 7, is_signed, true>();
      if constexpr (n == 2) tile_dot_bytes<3, 5, 7, is_signed, true>();
    }
  }
  // totals += the sums of T16 tiles [begin, end), decoded on the way the first time.
  template <int n> QK_HD void segment(const uint8_t* codes, int64_t i, int64_t begin, int64_t end, F scale) const {
    alignas(64) int32_t sums[4][16][16];
    tile_clear<0>(), tile_clear<1>(), tile_clear<2>(), tile_clear<3>();
    if (i == 0) decode(codes, begin);
    for (int64_t t = begin; t < end; t++) {
      if (i == 0 && t + 1 < end) decode(codes, t + 1);
      multiply<n>(i, t);
    }
    tile_store<0>(sums[0]);
    if (has_odd) tile_store<1>(sums[1]);
    if (n == 2) tile_store<2>(sums[2]);
    if (n == 2 && has_odd) tile_store<3>(sums[3]);
    const __m512i a = _mm512_set1_epi32(w.a), b = _mm512_set1_epi32(w.b);
    for (int part = 0; part < n; part++) {
      const int64_t first = (i + part) * each, rows = M - first < each ? M - first : each;
      for (int64_t m = 0; m < rows; m++) {
        __m512i sum = _mm512_load_si512(sums[2 * part][m]);
        if (has_odd || w.a != 1) sum = _mm512_mullo_epi32(sum, a);
        if (has_odd) sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(_mm512_load_si512(sums[2 * part + 1][m]), b));
        float* total = totals + (first + m) * 16;
        store(total, load(total) + F(_mm512_cvtepi32_ps(sum)) * scale);
      }
    }
  }
  void run(int64_t stripe, const float* step, const float* bias, float* y) const {
    const int64_t all = w.blocks() / 2;
    const uint8_t* codes = w.codes + stripe * all * 512;
    memset(totals, 0, M * 16 * sizeof(float));
    for (int64_t group = 0; group < w.G; group++) {
      const int64_t group_end = (group + 1) * w.group / 64;
      const F scale = load(w.scale + (stripe * w.G + group) * 16);
      for (int64_t t = group * w.group / 64; t < group_end; t += PostAmx::kTiles) {
        const int64_t end = t + PostAmx::kTiles < group_end ? t + PostAmx::kTiles : group_end;
        for (int64_t i = 0; i < tiles; i += 2) i + 1 < tiles ? segment<2>(codes, i, t, end, scale) : segment<1>(codes, i, t, end, scale);
      }
    }
    const int64_t n = stripe * 16, rows = w.N - n < 16 ? w.N - n : 16;
    for (int64_t m = 0; m < M; m++) {
      F value = load(totals + m * 16) * F(step[m]);
      if (bias) value = value + (rows == 16 ? load(bias + n) : load_part(bias + n, rows));
      if (rows == 16) store(y + m * w.N + n, value);
      else store_part(y + m * w.N + n, value, rows);
    }
  }
};

template <bool is_signed, bool has_odd>
void stripes(const PostWeight& w, int64_t begin, int64_t end, const uint8_t* x, int64_t M, const float* step, const float* bias, float* y,
             uint8_t* scratch) {
  const int64_t each = PostAmx::rows(M), tiles = (M + each - 1) / each;
  TileShapes shapes;
  for (int n = 0; n < 8; n++) shapes.bytes[n] = 64, shapes.rows[n] = uint8_t(n < 6 ? each : 16);
  const Tiles in_force(shapes);
  using S = Stripe<is_signed, has_odd>;
  const S s{w, x, M, tiles, each, scratch, reinterpret_cast<float*>(scratch + PostAmx::kBuffer), S::table(w.even), S::table(w.odd)};
  for (int64_t stripe = begin; stripe < end; stripe++) s.run(stripe, step, bias, y);
}

void linear(const PostWeight& w, int64_t begin, int64_t end, const uint8_t* x, int64_t M, const float* step, const float* bias, float* y,
            uint8_t* scratch) {
  const auto kernel = w.is_signed ? w.b ? stripes<true, true> : stripes<true, false> : w.b ? stripes<false, true> : stripes<false, false>;
  kernel(w, begin, end, x, M, step, bias, y, scratch);
}

}  // namespace
#define QK_LINEAR linear
#else
#define QK_LINEAR nullptr
#endif

namespace qk {
extern const PostAmx QK_NAME(lut_linear_int_amx);
const PostAmx QK_NAME(lut_linear_int_amx) = {QK_LINEAR};
}  // namespace qk
