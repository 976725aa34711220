// Codes of 8 bits as levels by tables of bytes, 64 codes at a time: AVX-512 VBMI, which a file that includes this asks for
// (QK_ALSO). Sixteen words of four codes each become as many words of their levels' first bytes, as many of the second ones, and so
// on; of these, the bytes that belong to one code are gathered in a word.
#pragma once
#include "lut_words.h"

namespace {

// table[code], 256 bytes, for each byte of the words.
struct ByteTable {
  __m512i t[4];
  ByteTable() = default;
  QK_HD explicit ByteTable(const uint8_t* bytes) { for (int i = 0; i < 4; i++) t[i] = _mm512_loadu_si512(bytes + 64 * i); }
  QK_HD I operator()(I codes) const {
    const __m512i low = _mm512_permutex2var_epi8(t[0], codes.v, t[1]), high = _mm512_permutex2var_epi8(t[2], codes.v, t[3]);
    return {_mm512_mask_blend_epi8(_mm512_movepi8_mask(codes.v), low, high)};
  }
};

// Bytes 0 and 2 of a, or 1 and 3, each with that of b after it.
template <int odd> QK_IN I zip(I a, I b) { return odd ? choose(0x00ff00ffu, right(a, 8), b) : choose(0x00ff00ffu, a, left(b, 8)); }
// Byte i of a, b, c and d.
template <int i> QK_IN I gathered(I a, I b, I c, I d) {
  const I low = zip<i % 2>(a, b), high = zip<i % 2>(c, d);
  return i < 2 ? choose(0xffffu, low, left(high, 16)) : choose(0xffffu, right(low, 16), high);
}

// As Table<8>. Of levels that are bfloat16, which is narrow, the lower two bytes are 0.
template <bool narrow> struct Bytes {
  static constexpr int kFirst = narrow ? 2 : 0;
  ByteTable byte[4 - kFirst];
  QK_HD explicit Bytes(const Packed& w) {
    uint8_t all[256];
    for (int b = kFirst; b < 4; b++) {
      for (int i = 0; i < 256; i++) all[i] = uint8_t(qk::bits_of(w.levels[i]) >> 8 * b);
      byte[b - kFirst] = ByteTable(all);
    }
  }
  template <int i> QK_HD I column(I word) const {
    if constexpr (narrow) {
      const I two = zip<i % 2>(byte[0](word), byte[1](word));
      return i < 2 ? left(two, 16) : masked(two, 0xffff0000u);
    } else {
      return gathered<i>(byte[0](word), byte[1](word), byte[2](word), byte[3](word));
    }
  }
  QK_HD F operator()(const Code& code) const {
    const I level = code.shift == 0 ? column<0>(code.word) : code.shift == 8 ? column<1>(code.word)
                  : code.shift == 16 ? column<2>(code.word) : column<3>(code.word);
    return _mm512_castsi512_ps(level.v);
  }
};

}  // namespace
