// The matrix tiles of AMX-BF16 and AMX-INT8: eight registers of up to 16 rows of 64 bytes, and the instructions that multiply two
// of them.
// What the compiler knows nothing of: a kernel holds its tiles between Tiles' construction and its end, by number.
// QK_TILES_IN_SOFTWARE: the same bits on a CPU without them, for tests.
#pragma once
#include <cstdint>
#include <cstring>

namespace {

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};
};

#ifdef QK_TILES_IN_SOFTWARE
struct Tile { alignas(64) uint32_t word[16][16]; };
struct TileState { TileShapes shapes; Tile tile[8]; };
inline TileState& tile_state() { static thread_local TileState s; return s; }

struct Tiles {
  explicit Tiles(const TileShapes& shapes) { tile_state().shapes = shapes; memset(tile_state().tile, 0xff, sizeof tile_state().tile); }
  ~Tiles() { tile_state().shapes = {}; }
};
template <int n> void tile_clear() { memset(&tile_state().tile[n], 0, sizeof(Tile)); }
template <int n> void tile_load(const void* from, int64_t stride = 64) {
  TileState& s = tile_state();
  memset(&s.tile[n], 0, sizeof(Tile));
  for (int r = 0; r < s.shapes.rows[n]; r++) memcpy(s.tile[n].word[r], static_cast<const char*>(from) + r * stride, s.shapes.bytes[n]);
}
template <int n> void tile_store(void* to, int64_t stride = 64) {
  const TileState& s = tile_state();
  for (int r = 0; r < s.shapes.rows[n]; r++) memcpy(static_cast<char*>(to) + r * stride, s.tile[n].word[r], s.shapes.bytes[n]);
}

// What is denormal is 0, before and after each operation.
inline float tile_flush(float v) { const float size = v < 0 ? -v : v; return size < 1.17549435e-38f ? 0.0f * v : v; }
inline float tile_value(uint32_t bits) { float f; memcpy(&f, &bits, 4); return tile_flush(f); }
// c += a b: the first values of all pairs in one chain of fused multiply-adds, the second ones in another, from 0.
template <int c, int a, int b> void tile_dot() {
  TileState& s = tile_state();
  for (int m = 0; m < s.shapes.rows[a]; m++)
    for (int n = 0; n < 16; n++) {
      float chain[2] = {0, 0};
      for (int k = 0; k < 16; k++)
        for (int half = 0; half < 2; half++) {
          const auto value = [&](uint32_t pair) { return tile_value(half ? pair & 0xffff0000u : pair << 16); };
          chain[half] = tile_flush(__builtin_fmaf(value(s.tile[a].word[m][k]), value(s.tile[b].word[k][n]), chain[half]));
        }
      const float sum = tile_flush(tile_value(s.tile[c].word[m][n]) + tile_flush(chain[0] + chain[1]));
      memcpy(&s.tile[c].word[m][n], &sum, 4);
    }
}
// c += a b: bytes, signed or not, four products to a sum.
template <int c, int a, int b, bool a_signed, bool b_signed> void tile_dot_bytes() {
  TileState& s = tile_state();
  const auto byte = [](uint32_t word, int j, bool is_signed) { return is_signed ? int(int8_t(word >> 8 * j)) : int(uint8_t(word >> 8 * j)); };
  for (int m = 0; m < s.shapes.rows[a]; m++)
    for (int n = 0; n < 16; n++)
      for (int k = 0; k < 64; k++)
        s.tile[c].word[m][n] += uint32_t(byte(s.tile[a].word[m][k / 4], k % 4, a_signed) * byte(s.tile[b].word[k / 4][n], k % 4, b_signed));
}
#else
// The shapes that were in force before come back at the end: another library on this thread may count on its own.
class Tiles {
  TileShapes before_;
 public:
  explicit Tiles(const TileShapes& shapes) {
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" : : "m"(shapes) : "memory");
  }
  Tiles(const Tiles&) = delete;
  ~Tiles() { asm volatile("ldtilecfg %0" : : "m"(before_) : "memory"); }
};
template <int n> inline __attribute__((always_inline)) void tile_load(const void* from, int64_t stride = 64) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(n) : "memory");
}
template <int n> inline __attribute__((always_inline)) void tile_store(void* to, int64_t stride = 64) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(n) : "memory");
}
// By loading zeros, which is faster than tilezero where it was timed.
alignas(64) const uint8_t kZeroTile[1024] = {};
template <int n> inline __attribute__((always_inline)) void tile_clear() { tile_load<n>(kZeroTile); }
template <int c, int a, int b> inline __attribute__((always_inline)) void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
template <int c, int a, int b, bool a_signed, bool b_signed> inline __attribute__((always_inline)) void tile_dot_bytes() {
  static_assert(a_signed || b_signed);
  if constexpr (!a_signed) asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  else if constexpr (b_signed) asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  else asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
}
#endif

}  // namespace
