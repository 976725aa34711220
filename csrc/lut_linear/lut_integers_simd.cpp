// x as digits, and one row of it times a weight in integers: see lut_integers.h.
//
// The order of every sum, on every instruction set: none within a segment, which is an integer, exactly. What is above its lowest 16
// bits becomes float32, times 65536 plus the rest is rounded once, then times the step of x and the unit of the levels, which are
// one factor; that times the scale is added to the total with one rounding; then the bias.
#include "../common/simd.h"
#include "lut_integers.h"
#if QK_ISA == 512
QK_ALSO("avx512vnni")
#endif
#include "lut_quads.h"

namespace {

using qk::IntegerLevels;
using qk::IntegerRows;

// ---------------------------------------------------------------- x
// Without AVX-512, and where x is not paired, the digits are two halves, 16 bits: a sub-block of one row is 128 bytes, of pairs of columns,
// as codes of them lie 16 bits apart in a word, in the order of the loops below; the upper halves of a pair, then the lower ones.
struct Halves16 {
  template <bool of_bytes> static int16_t* at(uint8_t* block, int column) {
    const int t = column / 8, i = column % 8, pair = of_bytes ? i / 4 * 2 + i % 2 : i % 4, second = of_bytes ? i / 2 % 2 : i / 4;
    return reinterpret_cast<int16_t*>(block) + (t * 4 + pair) * 4 + second;
  }
};

// Columns 0 to 31 of a sub-block, times a power of two, as digits; sums += their halves.
#if QK_ISA == 512
struct Sum {
  __m512i high, low;
  QK_HD Sum() : high(_mm512_setzero_si512()), low(_mm512_setzero_si512()) {}
  QK_HD void add(__m512i n) {
    const __m512i h = _mm512_srai_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(0x8080)), 16);
    high = _mm512_add_epi32(high, h), low = _mm512_add_epi32(low, _mm512_sub_epi32(n, _mm512_slli_epi32(h, 16)));
  }
  uint32_t highs() const { return uint32_t(_mm512_reduce_add_epi32(high)); }
  uint32_t lows() const { return uint32_t(_mm512_reduce_add_epi32(low)); }
};
template <bool of_bytes> QK_IN void digits(F a, F b, F by, uint8_t* to, const IntegerRows& rows, uint8_t* lowest, Sum& sum) {
  const __m512i n = _mm512_cvtps_epi32((a * by).v), m = _mm512_cvtps_epi32((b * by).v), offset = _mm512_set1_epi32(0x808080);
  sum.add(n), sum.add(m);
  // in each 128 bits, the bytes of four columns: by digit, and there as the halves of quads are
  const __m512i by_digit = _mm512_maskz_broadcast_i32x4(
      0xffff, of_bytes ? _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
                       : _mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
  const auto split = [&](__m512i v) { return _mm512_shuffle_epi8(_mm512_xor_si512(_mm512_add_epi32(v, offset), offset), by_digit); };
  const __m512i first = split(n), second = split(m);
  const auto word = [](int i) {  // of digits 0 and 1
    const int digit = i / 16, t = i % 16 / 4, q = i / 2 % 2, h = i % 2;
    return short(of_bytes ? (2 * t + q) * 8 + 2 * digit + h : (2 * t + h) * 8 + 2 * digit + q);
  };
  alignas(64) short order[32];
  for (int i = 0; i < 32; i++) order[i] = word(i);
  const __m512i low = _mm512_load_si512(order), high = _mm512_add_epi16(low, _mm512_set1_epi16(4));
  const auto put_one = [&](__m256i quads, int digit) {
    uint8_t* const at = to + digit * rows.stride();
    if (rows.marked && digit == 0) *lowest |= uint8_t(_mm256_test_epi32_mask(quads, quads));
    if (rows.paired) _mm512_mask_storeu_epi32(at, 0x5555, _mm512_maskz_cvtepu32_epi64(0xff, quads));
    else _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), quads);
  };
  const auto put = [&](__m512i v, int digit) {
    put_one(_mm512_castsi512_si256(v), digit);
    if (digit + 1 < rows.digits) put_one(_mm512_extracti64x4_epi64(v, 1), digit + 1);
  };
  put(_mm512_permutex2var_epi16(first, low, second), 0);
  put(_mm512_permutex2var_epi16(first, high, second), 2);
}
#else
struct Sum {
  uint32_t high = 0, low = 0;
  uint32_t highs() const { return high; }
  uint32_t lows() const { return low; }
};
#if QK_ISA == 2
// `count` digits of the eight columns of octet t, paired; returns the bits of `lowest`.
QK_IN uint8_t paired_octet(__m256i n, int count, int t, uint8_t* to) {
  const __m256i offset = _mm256_set1_epi32(0x808080);
  const __m256i order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));  // as for AVX-512
  const __m256i halves = _mm256_shuffle_epi8(_mm256_xor_si256(_mm256_add_epi32(n, offset), offset), order);
  const __m128i first = _mm256_castsi256_si128(halves), second = _mm256_extracti128_si256(halves, 1);
  const __m128i low = _mm_unpacklo_epi16(first, second), high = _mm_unpackhi_epi16(first, second);  // quads of digits 0 and 1, of 2 and 3
  const uint64_t digit[] = {uint64_t(_mm_cvtsi128_si64(low)), uint64_t(_mm_extract_epi64(low, 1)), uint64_t(_mm_cvtsi128_si64(high)),
                            uint64_t(_mm_extract_epi64(high, 1))};
  for (int d = 0; d < count; d++)
    for (int q = 0; q < 2; q++) {
      const uint32_t quad = uint32_t(digit[d] >> 32 * q);
      memcpy(to + d * 64 + (2 * t + q) * 8, &quad, 4);
    }
  return uint8_t(((uint32_t(digit[0]) != 0) | (digit[0] >> 32 != 0) << 1) << 2 * t);
}
#endif
template <bool of_bytes> QK_IN void digits(F a, F b, F by, uint8_t* to, const IntegerRows& rows, uint8_t* lowest, Sum& sum) {
  float values[2 * kLanes];
  store(values, a * by), store(values + kLanes, b * by);
#if QK_ISA == 2
  if (!of_bytes && rows.paired) {
    __m256i upper = _mm256_setzero_si256(), all = upper;  // sums: of halves, of whole ones modulo 2**32
    for (int t = 0; t < 4; t++) {
      const __m256i n = _mm256_cvtps_epi32(_mm256_loadu_ps(values + 8 * t));
      upper = _mm256_add_epi32(upper, _mm256_srai_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(0x8080)), 16));  // as the digits are
      all = _mm256_add_epi32(all, n);
      *lowest |= paired_octet(n, rows.digits, t, to);
    }
    const __m256i two = _mm256_hadd_epi32(upper, all), one = _mm256_hadd_epi32(two, two);
    const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(one), _mm256_extracti128_si256(one, 1));
    const uint32_t high = uint32_t(_mm_cvtsi128_si32(sums));
    sum.high += high, sum.low += uint32_t(_mm_extract_epi32(sums, 1)) - (high << 16);
    return;
  }
#endif
  for (int c = 0; c < kBlock; c++) {
    const int32_t n = int32_t(__builtin_lrintf(values[c])), h = (n + 0x8000) >> 16, l = n - h * 65536;
    sum.high += uint32_t(h), sum.low += uint32_t(l);
    Halves16::at<of_bytes>(to, c)[0] = int16_t(h);
    Halves16::at<of_bytes>(to, c)[2] = int16_t(l);
  }
}
#endif

// Row m, whose values are x; false if it is not for these kernels. to: of its sub-block b, digit 0.
template <bool of_bytes, class T, class To>
QK_IN bool split_row(const IntegerRows& rows, const IntegerLevels& levels, const T* x, IntegerRows::Segment* segment, uint8_t* lowest, To&& to) {
  const int64_t K = rows.K;
  const auto part = [&](int64_t k, int64_t end) QK_INLINE_LAMBDA {
    return end - k >= kLanes ? load(x + k) : end > k ? load_part(x + k, end - k) : F(0.0f);
  };
  for (int64_t column = 0; column < K; segment += rows.each) {
    const int64_t end = qk::segment_end(column, rows.group, K);
    F most(0.0f);
    for (int64_t k = column; k < end; k += kLanes) {
      const F v = part(k, end);
      most = larger(select(is_number(v), absolute(v), F(__builtin_inff())), most);
    }
    float size[kLanes], largest = 0;
    lanes(most, size);
    for (float s : size) largest = s > largest ? s : largest;
    const int exponent = int(qk::bits_of(largest) >> 23) - 127, full = 8 * rows.digits - 3, up = largest > 0 ? full - exponent : 0;
    // the integers are below 2**(full + 1)
    if (exponent == 128 || up > 126) return false;
    const double step = largest > 0 ? double(levels.unit) * qk::from_bits(uint32_t(127 - up) << 23) : 1;
    if (!(step >= 0x1p-126 && step <= 0x1p+80)) return false;
    const F by(qk::from_bits(uint32_t(127 + up) << 23));
    const F far(largest * 0x1p-7f);
    F balance(0.0f);  // how many values are not far below the largest, less those that are, but for 0
    const auto weighed = [&](F v) QK_INLINE_LAMBDA {
      const F size = absolute(v);
      balance = balance + select(size >= far, F(1.0f), select(size > F(0.0f), F(-1.0f), F(0.0f)));
      return v;
    };
    Sum sum;
    for (; column < end; column += kBlock)
      digits<of_bytes>(weighed(part(column, end)), weighed(part(column + kLanes, end)), by, to(column / kBlock), rows,
                       lowest + rows.unit_of(column / kBlock) * rows.each, sum);
    lanes(balance, size);
    float all = 0;
    for (float s : size) all += s;
    if (largest > 0 && all < 0) return false;
    column = end;
    *segment = {float(step), int32_t(sum.highs() * uint32_t(levels.base)), int32_t(sum.lows() * uint32_t(levels.base))};
  }
  return true;
}

template <bool of_bytes, class T>
void split_rows(const IntegerRows& rows, const IntegerLevels& levels, int64_t begin, int64_t end, const void* x, char* fits) {
  const bool plain = QK_ISA != 512 && !rows.paired;  // as Halves16
  const int64_t blocks = (rows.K + kBlock - 1) / kBlock, stride = rows.stride(), more = plain ? blocks : rows.units * rows.depth;
  for (int64_t m = begin; m < end; m++) {
    const int64_t tile = m / rows.each, row = m % rows.each;
    const auto block = [&](int64_t b) { return plain ? rows.data + b * 128 : rows.bytes_of(tile, b) + row * rows.digits * stride; };
    const auto zero = [&](int64_t b) {
      if (rows.paired)
        for (int quad = 0; quad < 8 * rows.digits; quad++) memset(block(b) + quad * 8, 0, 4);
      else for (int d = 0; d < (plain ? 4 : rows.digits); d++) memset(block(b) + d * (plain ? 32 : stride), 0, 32);
    };
    IntegerRows::Segment* const segments = rows.segment(tile, 0) + row;
    uint8_t* const lowest = rows.lowest_of(tile, 0) + row;
    for (int64_t u = 0; rows.marked && u < rows.units; u++) lowest[u * rows.each] = 0;
    fits[m] = split_row<of_bytes>(rows, levels, static_cast<const T*>(x) + m * rows.K, segments, lowest, block);
    if (!fits[m]) {
      for (int64_t b = 0; b < blocks; b++) zero(b);
      for (int64_t s = 0; s < rows.cuts; s++) segments[s * rows.each] = {0, 0, 0};
    }
    for (int64_t b = blocks; b < more; b++) zero(b);
  }
}

template <class T>
void split_by(const IntegerRows& rows, const IntegerLevels& levels, int64_t begin, int64_t end, const void* x, char* fits) {
  if (rows.bits == 8) split_rows<true, T>(rows, levels, begin, end, x, fits);
  else split_rows<false, T>(rows, levels, begin, end, x, fits);
}

void split(const IntegerRows& rows, const IntegerLevels& levels, int64_t begin, int64_t end, const void* x, int dtype, char* fits) {
  if (dtype == 0) split_by<float>(rows, levels, begin, end, x, fits);
  else if (dtype == 1) split_by<qk::half>(rows, levels, begin, end, x, fits);
  else split_by<qk::bfloat>(rows, levels, begin, end, x, fits);
}

// ---------------------------------------------------------------- one row
// The sums of a segment: upper and lower halves. octet: += the products of octet t, given where a sub-block of x is.
#if QK_ISA == 512
template <int bits, int digits> struct Sums8 {
  static constexpr int kBytes = digits * 32;  // of a sub-block of x
  // Codes are multiplied where they lie in a byte, and each place has its own sums; of 8 bits each half of an octet.
  static constexpr int kPlaces = bits == 2 ? 4 : 2, kApart = bits == 8 ? 0 : 8 / kPlaces;  // bits
  I sum[kPlaces][digits];
  QK_HD void clear() { for (auto& s : sum) for (I& d : s) d = all(0); }
  QK_HD void octet(const I (&words)[1][Codes<bits>::kWords], int first, int s, int t, const uint8_t* x) {
    const auto add = [&](int q, int place, I codes) QK_INLINE_LAMBDA {
      QK_UNROLL for (int d = 0; d < digits; d++) sum[place][d] = add_products(sum[place][d], codes, x + d * 32 + (2 * t + q) * 4);
    };
    if constexpr (bits == 8) {
      for (int q = 0; q < 2; q++) add(q, q, words[0][4 * q + t]);
    } else {
      Codes<bits>::template octet<2>(words, first, s, t, [&](int q, int, Code code) QK_INLINE_LAMBDA {
        add(q, code.shift / kApart, masked(code.word, 0x01010101u * ((1u << bits) - 1) << code.shift));
      });
    }
  }
  QK_HD F in_steps(int32_t factor, const IntegerRows::Segment& segment) const {
    I digit[digits];
    QK_UNROLL for (int d = 0; d < digits; d++) {
      digit[d] = sum[0][d];
      QK_UNROLL for (int p = 1; p < kPlaces; p++) digit[d] = digit[d] + right_signed(sum[p][d], p * kApart);
    }
    return ::in_steps(digit, factor, segment);
  }
};
#else
// sum + the products of two codes and two integers, all of 16 bits, for each row of the weight.
QK_IN I dot(I sum, I codes, const int16_t* pair) {
  int32_t two;
  memcpy(&two, pair, 4);
#if QK_ISA == 2
  const __m256i x = _mm256_set1_epi32(two);
  return sum + I{{_mm256_madd_epi16(codes.v[0], x), _mm256_madd_epi16(codes.v[1], x)}};
#else
  for (int i = 0; i < kLanes; i++) sum.v[i] += uint32_t(int16_t(codes.v[i]) * int16_t(two) + int16_t(codes.v[i] >> 16) * (two >> 16));
  return sum;
#endif
}
template <int bits, int> struct Sums8 {
  static constexpr int kBytes = 128;
  I high, low;
  QK_HD void clear() { high = low = all(0); }
  QK_HD void octet(const I (&words)[1][Codes<bits>::kWords], int first, int s, int t, const uint8_t* x) {
    const int16_t* pair = reinterpret_cast<const int16_t*>(x) + t * 16;
    const auto add = [&](I code) QK_INLINE_LAMBDA {
      const I two = masked(code, 0x00010001u * ((1u << bits) - 1));
      high = dot(high, two, pair), low = dot(low, two, pair + 2);
      pair += 4;
    };
    if constexpr (bits == 8) {
      for (int half = 0; half < 8; half += 4) add(words[0][half + t]), add(right(words[0][half + t], 8));
    } else {
      Codes<bits>::template octet<4>(words, first, s, t, [&](int, int, I code) QK_INLINE_LAMBDA { add(code); });
    }
  }
  QK_HD F in_steps(int32_t factor, const IntegerRows::Segment& segment) const { return ::in_steps(high, low, factor, segment); }
};
#endif

template <int bits, int digits>
void alone_by(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  using C = Codes<bits>;
  const C codes(w);
  const int64_t blocks = (w.K + kBlock - 1) / kBlock;
  const int32_t factor = levels.factor;
  for (int64_t stripe = begin; stripe < end; stripe++) {
    const uint8_t* from = x.data;
    Place place(w, x);
    F total(0.0f);
    I words[1][C::kWords];
    Sums8<bits, digits> sums;
    sums.clear();
    codes.load_first(stripe, words[0]);
    for (int64_t start = 0; start < blocks; start += C::kBlocks) {
      codes.load_unit(stripe, start, words[0]);
      QK_UNROLL for (int first = 0; first < C::kBlocks; first += C::kSteps) {
        QK_UNROLL for (int s = 0; s < C::kSteps; s++, from += sums.kBytes) {
          const int64_t block = start + first + s;
          if (block >= blocks) break;
          codes.load_ahead(stripe, start, first + s, words[0]);
          QK_UNROLL for (int t = 0; t < 4; t++) {
            codes.prefetch_far(stripe, block, t);
            sums.octet(words, first, s, t, from);
          }
          if ((block + 1) * kBlock < place.stop) continue;
          total = fused(sums.in_steps(factor, *place.segment), scale_of(w, stripe, place.group), total);
          sums.clear();
          place.next(w);
        }
      }
    }
    write(w, stripe, total, bias, y, 0);
  }
}

void alone(const Packed& w, const IntegerLevels& levels, int64_t begin, int64_t end, const IntegerRows& x, const float* bias, Output y) {
  const auto of = [&](auto three, auto four) { (x.digits == 3 ? three : four)(w, levels, begin, end, x, bias, y); };
  switch (w.bits) {
    case 2: return of(alone_by<2, 3>, alone_by<2, 4>);
    case 3: return of(alone_by<3, 3>, alone_by<3, 4>);
    case 4: return of(alone_by<4, 3>, alone_by<4, 4>);
    case 8: return of(alone_by<8, 3>, alone_by<8, 4>);
  }
}

}  // namespace
#if QK_ISA == 512
QK_NO_MORE
#endif

QK_KERNELS(LutIntegers, lut_integers, {split, alone})
