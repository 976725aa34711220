// Rows of x to the integers of an activation quantizer's forward, LSQ's (csrc/lsq/lsq.h) or DAQ's (csrc/daq/daq.h), for
// lut_linear_int.
#include "../common/simd.h"
#include "../common/t16_simd.h"
#include "../daq/daq.h"
#include "../lsq/lsq.h"
#include "lut_linear_int.h"

namespace {

// The lowest bytes of sixteen small integers that are floats.
QK_IN void store_bytes(uint8_t* to, F v) {
#if QK_ISA == 512
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v.v)));
#elif QK_ISA == 2
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(v.v[0]), _mm256_cvtps_epi32(v.v[1]));  // in each half of both
  const __m256i in_order = _mm256_and_si256(_mm256_permute4x64_epi64(words, 0xd8), _mm256_set1_epi16(255));
  const __m128i bytes = _mm_packus_epi16(_mm256_castsi256_si128(in_order), _mm256_extracti128_si256(in_order, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#else
  for (int i = 0; i < kLanes; i++) to[i] = uint8_t(int32_t(v.v[i]));
#endif
}

// Whether all are numbers. Bytes of what are not are 0.
template <class Op, class T> QK_IN bool row(const Op& op, const T* x, int64_t K, uint8_t* to) {
  F rest(0.0f);  // or NaN
  const auto put = [&](F n, uint8_t* bytes) QK_INLINE_LAMBDA {
    rest = rest + (n - n);
    store_bytes(bytes, select(is_number(n), n, F(0.0f)));
  };
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes) put(op.integer(load(x + k)), to + k);
  if (k < K) {  // the integer of what is beyond K may be NaN
    uint8_t last[kLanes];
    put(leading(op.integer(load_part(x + k, K - k)), K - k), last);
    memcpy(to + k, last, K - k);
  }
  float lane[kLanes];
  lanes(rest, lane);
  bool numbers = true;
  for (float l : lane) numbers = numbers && l == 0;
  return numbers;
}

template <template <class> class Op, class T>
void rows(const typename Op<F>::Args& args, const T* x, int64_t begin, int64_t end, int64_t K, int64_t each, const float* const* params,
          uint8_t* to, char* numbers) {
  for (int64_t m = begin; m < end; m++) numbers[m] = row(Op<F>(args, params, m / each), x + m * K, K, to + m * K);
}

template <template <class> class Op>
void quantize(const typename Op<F>::Args& args, const void* x, int dtype, int64_t begin, int64_t end, int64_t K, int64_t each,
              const float* const* params, uint8_t* to, char* numbers) {
  const auto as = [&](auto zero) { rows<Op>(args, static_cast<const decltype(zero)*>(x), begin, end, K, each, params, to, numbers); };
  dtype == 0 ? as(0.0f) : dtype == 1 ? as(qk::half{}) : as(qk::bfloat{});
}

}  // namespace

QK_KERNELS(LutIntQuantize, lut_linear_int_quantize, {quantize<Lsq>, quantize<Daq>})
