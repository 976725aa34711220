// Codes as bytes, four columns to a word, and what their integer sums become: for the kernels of lut_integers.h. A file that defines
// QK_GFNI before it includes this, with QK_ALSO("gfni") in force, brings codes down to the lowest bits by products of bits.
#pragma once
#include "lut_integers.h"
#include "lut_words.h"

namespace {

// `bits` bits of each byte, from bit `shift` on.
template <int bits> QK_IN I codes_of(I words, int shift) {
#ifdef QK_GFNI
  if (shift > 0) {
    uint64_t matrix = 0;  // bit i of a byte is the parity of byte 7 - i and that byte
    for (int i = 0; i < bits; i++) matrix |= uint64_t(1) << (shift + i) << 8 * (7 - i);
    return {_mm512_gf2p8affine_epi64_epi8(words.v, _mm512_set1_epi64(int64_t(matrix)), 0)};
  }
#endif
  return masked(right(words, shift), 0x01010101u * ((1u << bits) - 1));
}

// Quad q (0 or 1) of octet t is columns q, q + 2, q + 4 and q + 6 of the octet; of 8 bits columns 4 q to 4 q + 3.
template <int bits> struct Quads {
  // body(q, codes of a quad) for octet t of a sub-block, as Codes has it.
  template <class Body> QK_IN void octet(const I (&words)[1][Codes<bits>::kWords], int first, int s, int t, Body&& body) {
    if constexpr (bits == 8) {
      for (int q = 0; q < 2; q++) body(q, words[0][4 * q + t]);
    } else {
      Codes<bits>::template octet<2>(words, first, s, t, [&](int q, int, Code code) QK_INLINE_LAMBDA {
        body(q, codes_of<bits>(code.word, code.shift));
      });
    }
  }
};

#if QK_ISA == 512
// sum + the products of the four bytes of each row, which are unsigned, and the four signed ones at x. In assembly, for x is an operand
// in memory there: compilers load it first, and where another thread shares the core, it is instructions that take the time.
QK_IN I add_products(I sum, I codes, const uint8_t* x) {
  struct Four { uint8_t of[4]; };
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.v) : "v"(codes.v), "m"(*reinterpret_cast<const Four*>(x)));
  return sum;
}
#endif

// Four bytes of a table for four codes: of up to 4 bits, sixteen entries; of 8, those below 32.
#if QK_ISA == 512
template <int bits> struct ByteTable {
  __m512i first, second;
  QK_HD explicit ByteTable(const int8_t* t) : first(whole(t)), second(bits == 8 ? whole(t + 16) : first) {}
  QK_HD static __m512i whole(const int8_t* t) { return _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(t))); }
  QK_HD I operator()(I code) const {
    const __m512i one = _mm512_shuffle_epi8(first, code.v);
    if constexpr (bits < 8) return {one};
    return {_mm512_mask_blend_epi8(_mm512_test_epi8_mask(code.v, _mm512_set1_epi8(16)), one, _mm512_shuffle_epi8(second, code.v))};
  }
};
#elif QK_ISA == 2
template <int bits> struct ByteTable {
  __m256i first, second;
  QK_HD explicit ByteTable(const int8_t* t) : first(whole(t)), second(bits == 8 ? whole(t + 16) : first) {}
  QK_HD static __m256i whole(const int8_t* t) { return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(t))); }
  QK_HD __m256i half(__m256i code) const {
    const __m256i one = _mm256_shuffle_epi8(first, code);
    if constexpr (bits < 8) return one;
    return _mm256_blendv_epi8(one, _mm256_shuffle_epi8(second, code), _mm256_slli_epi16(code, 3));  // bit 4 of a code below 32
  }
  QK_HD I operator()(I code) const { return {{half(code.v[0]), half(code.v[1])}}; }
};
#else
template <int bits> struct ByteTable {
  const int8_t* t;
  QK_HD explicit ByteTable(const int8_t* table) : t(table) {}
  QK_HD uint32_t at(uint32_t code, int byte) const { return uint32_t(uint8_t(t[code >> 8 * byte & (bits == 8 ? 31 : 15)])) << 8 * byte; }
  QK_HD I operator()(I code) const QK_LANES(I, .v[i] = at(code.v[i], 0) | at(code.v[i], 1) | at(code.v[i], 2) | at(code.v[i], 3))
};
#endif

// Where in a row of x: its segment, which ends at column `stop`, and the group.
struct Place {
  const qk::IntegerRows::Segment* segment;
  int64_t group = 0, stop, group_end;
  QK_HD Place(const Packed& w, const qk::IntegerRows& x)
      : segment(x.segments), stop(qk::segment_end(0, w.group, w.K)), group_end(w.group) {}
  QK_HD void next(const Packed& w) {
    segment++;
    if (stop == group_end) group_end += w.group, group++;
    stop = lower((stop / 128 + 1) * 128, group_end);  // qk::segment_end, without its division
  }
};

// A segment in units of the levels: upper and lower halves of integers, summed and multiplied as codes are (see IntegerLevels). What
// the lower ones carry over goes to the upper ones, so that the same integer gives the same bits, however it was halved.
QK_IN F in_steps(I high, I low, int32_t factor, const qk::IntegerRows::Segment& s) {
  if (factor != 1) high = high * all(factor), low = low * all(factor);  // LSQ's and CPQ's is 1
  high = high + all(s.high), low = low + all(s.low);
  high = high + right_signed(low, 16);
  return fused(to_float(high), F(65536.0f), to_float(masked(low, 0xffff))) * F(s.step);
}
template <int digits> QK_IN F in_steps(const I (&sum)[digits], int32_t factor, const qk::IntegerRows::Segment& s) {  // of each digit
  return in_steps(digits == 4 ? left(sum[digits - 1], 8) + sum[2] : sum[2], left(sum[1], 8) + sum[0], factor, s);
}

}  // namespace
