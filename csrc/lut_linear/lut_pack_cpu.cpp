// Plain codes to T16 bytes and back. The layout is drawn in qkernels/pack.py.
#include <algorithm>
#include <array>
#include <cstring>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>
#include "../common/export.h"
#include "../common/tensors.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Low nibbles of eight bytes -> eight nibbles, and back.
uint32_t squeeze(uint64_t x) {
  x = (x | x >> 4) & 0x00ff00ff00ff00ffull;
  x = (x | x >> 8) & 0x0000ffff0000ffffull;
  return uint32_t(x | x >> 16);
}
uint64_t spread(uint32_t word) {
  uint64_t x = word;
  x = (x | x << 16) & 0x0000ffff0000ffffull;
  x = (x | x << 8) & 0x00ff00ff00ff00ffull;
  return (x | x << 4) & 0x0f0f0f0f0f0f0f0full;
}

// A plane of p bits, the lowest of which is bit `shift` of the code. rows() calls body(byte, row, column) for the 8 bytes of
// each lane and half-row: they hold 8 columns from `column` on, and the same of each sub-block of 32 that follows in the tile.
struct Plane {
  int p, shift;
  int64_t N, K, tiles, offset;  // offset: bytes before the plane
  int64_t width() const { return 256 / p; }
  int64_t bytes() const { return (N + 15) / 16 * tiles * 512; }
  template <class Body> void rows(int64_t begin, int64_t end, Body body) const {
    for (int64_t stripe = begin; stripe < end; stripe++)
      for (int64_t tile = 0; tile < tiles; tile++)
        for (int lane = 0; lane < 32; lane++)
          for (int half = 0; half < 2; half++)
            body(offset + (stripe * tiles + tile) * 512 + lane * 16 + half * 8, stripe * 16 + half * 8 + lane / 4,
                 tile * width() + lane % 4 * 8);
  }
};

std::array<Plane, 2> planes(int64_t bits, int64_t N, int64_t K) {
  STD_TORCH_CHECK(bits == 1 || bits == 2 || bits == 3 || bits == 4 || bits == 8, "bits must be 1, 2, 3, 4 or 8, got ", bits);
  STD_TORCH_CHECK(N > 0 && K > 0, "n and k must be positive, got ", N, " and ", K);
  const auto plane = [&](int p, int shift, int64_t offset) { return Plane{p, shift, N, K, (K + 256 / p - 1) / (256 / p), offset}; };
  if (bits != 3) return {plane(int(bits), 0, 0), Plane{}};
  const Plane low = plane(2, 0, 0);
  return {low, plane(1, 2, low.bytes())};
}

// Eight codes of a row, 0 beyond its end.
uint64_t load8(const uint8_t* row, int64_t k, int64_t K) {
  uint64_t x = 0;
  if (k < K) memcpy(&x, row + k, std::min<int64_t>(8, K - k));
  return x;
}

Tensor lut_pack(Tensor codes, int64_t bits) {
  STD_TORCH_CHECK(codes.dim() == 2 && codes.scalar_type() == ScalarType::Byte && codes.is_contiguous(),
                  "codes must be uint8 [N, K] and contiguous");
  qk::check_memory(codes, "codes");
  const int64_t N = codes.size(0), K = codes.size(1);
  const auto both = planes(bits, N, K);
  Tensor out = torch::stable::new_empty(codes, {both[0].bytes() + (bits == 3 ? both[1].bytes() : 0)});
  const uint8_t* from = static_cast<const uint8_t*>(codes.data_ptr());
  uint8_t* to = static_cast<uint8_t*>(out.data_ptr());
  torch::stable::parallel_for(0, (N + 15) / 16, std::max<int64_t>(1, 4096 / K), [&](int64_t begin, int64_t end) {
    for (const Plane& plane : both) {
      if (!plane.p) break;
      const uint64_t mask = 0x0101010101010101ull * ((1u << plane.p) - 1);
      plane.rows(begin, end, [&](int64_t at, int64_t n, int64_t k) {
        uint64_t both_words = 0;
        if (n < N && plane.p == 8) {
          both_words = load8(from + n * K, k, K);
        } else if (n < N) {
          for (int block = 0; block < 8 / plane.p; block++) {  // of 32 columns; half of them a word
            const uint64_t eight = load8(from + n * K, k + 32 * block, K) >> plane.shift & mask;
            const int per_word = 4 / plane.p;
            both_words |= uint64_t(squeeze(eight)) << (block / per_word * 32 + block % per_word * plane.p);
          }
        }
        memcpy(to + at, &both_words, 8);
      });
    }
  });
  return out;
}

Tensor lut_unpack(Tensor packed, int64_t bits, int64_t n, int64_t k) {
  const auto both = planes(bits, n, k);
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
                      packed.numel() == both[0].bytes() + (bits == 3 ? both[1].bytes() : 0),
                  "packed must be uint8, contiguous, and fit bits, n and k");
  qk::check_memory(packed, "packed");
  Tensor out = torch::stable::new_empty(packed, {n, k});
  const uint8_t* from = static_cast<const uint8_t*>(packed.data_ptr());
  uint8_t* to = static_cast<uint8_t*>(out.data_ptr());
  torch::stable::parallel_for(0, (n + 15) / 16, std::max<int64_t>(1, 4096 / k), [&](int64_t begin, int64_t end) {
    for (const Plane& plane : both) {
      if (!plane.p) break;
      const uint64_t mask = 0x0101010101010101ull * ((1u << plane.p) - 1);
      plane.rows(begin, end, [&](int64_t at, int64_t row, int64_t column) {
        if (row >= n) return;
        uint64_t words;
        memcpy(&words, from + at, 8);
        const int per_word = plane.p == 8 ? 1 : 4 / plane.p;
        for (int block = 0; block < 8 / plane.p; block++) {
          const int64_t first = column + 32 * block;
          if (first >= k) break;
          uint64_t eight = words;
          if (plane.p < 8)
            eight = (spread(uint32_t(words >> (block / per_word * 32))) >> (block % per_word * plane.p) & mask) << plane.shift;
          if (plane.shift) eight |= load8(to + row * k, first, k);
          memcpy(to + row * k + first, &eight, std::min<int64_t>(8, k - first));
        }
      });
    }
  });
  return out;
}

QK_EXPORT(cpu, lut_pack, "(Tensor codes, int bits) -> Tensor")
QK_EXPORT(cpu, lut_unpack, "(Tensor packed, int bits, int n, int k) -> Tensor")

}  // namespace
