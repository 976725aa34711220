// Codes as bytes, four columns to a word, and what their integer sums become: for the kernels of lut_integers.h.
#pragma once
#include "lut_integers.h"
#include "lut_words.h"

namespace {

// Quad q (0 or 1) of octet t is columns q, q + 2, q + 4 and q + 6 of the octet; of 8 bits columns 4 q to 4 q + 3.
template <int bits> struct Quads {
  // body(q, codes of a quad) for octet t of a sub-block, as Codes has it.
  template <class Body> QK_IN void octet(const I (&words)[1][Codes<bits>::kWords], int first, int s, int t, Body&& body) {
    if constexpr (bits == 8) {
      for (int q = 0; q < 2; q++) body(q, words[0][4 * q + t]);
    } else {
      Codes<bits>::template octet<2>(words, first, s, t, [&](int q, int, I code) QK_INLINE_LAMBDA {
        body(q, masked(code, 0x01010101u * ((1u << bits) - 1)));
      });
    }
  }
};

// A segment in units of the levels: upper and lower halves of integers, summed and multiplied as codes are (see IntegerLevels). What
// the lower ones carry over goes to the upper ones, so that the same integer gives the same bits, however it was halved.
QK_IN F in_steps(I high, I low, I factor, const qk::IntegerRows::Segment& s) {
  high = high * factor + all(s.high), low = low * factor + all(s.low);
  high = high + right_signed(low, 16);
  return fused(to_float(high), F(65536.0f), to_float(masked(low, 0xffff))) * F(s.step);
}
QK_IN F in_steps(const I* digit, I factor, const qk::IntegerRows::Segment& s) {  // the sums of each digit
  return in_steps(left(digit[3], 8) + digit[2], left(digit[1], 8) + digit[0], factor, s);
}

}  // namespace
