// Instructions of the GPU that C++ has no word for, one named function each, with its twin for the host emulator.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include "bits.h"
#include "simt.cuh"

namespace qk {

struct alignas(16) Words { uint32_t x, y, z, w; };  // what one 16-byte load brings
struct alignas(8) Pair { uint32_t x, y; };

#ifdef QK_SIMT_HOST

inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t r = 0;
  for (int i = 0; i < 4; i++) r |= uint32_t(bytes >> (8 * (selector >> (4 * i) & 7)) & 0xff) << (8 * i);
  return r;
}
inline uint32_t blend(uint32_t a, uint32_t b, uint32_t mask) { return (a & mask) | (b & ~mask); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }
inline int of_warp(int v) { return v; }

template <class V>
V at(const unsigned char* from, uint32_t offset) {
  V v;
  std::memcpy(&v, from + offset, sizeof v);
  return v;
}
template <class V>
void put(unsigned char* to, uint32_t offset, V v) { std::memcpy(to + offset, &v, sizeof v); }

inline Words load_streamed(const uint8_t* from, bool wanted, Words before) { return wanted ? at<Words>(from, 0) : before; }
inline Words load_cached(const void* from) { return at<Words>(static_cast<const unsigned char*>(from), 0); }
inline int fresh(int v) { return v; }
inline void wait_for_previous_grid() {}
inline void let_next_grid_start() {}

// For what reads and writes the emulator's own memory only, and takes most of the time of a test: no sanitizer looks at it.
#define QK_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

// sum + a b, 16 products one after another.
QK_UNCHECKED inline float add_products(float sum, const float* a, const float* b) {
  for (int k = 0; k < 16; k++) sum += a[k] * b[k];
  return sum;
}
// The two values of each word, as floats.
template <class T, int N>
void to_floats(const uint32_t (&words)[N], float* to) {
  for (int i = 0; i < 2 * N; i++) to[i] = to_float(T{uint16_t(words[i / 2] >> (16 * (i % 2)))});
}
// What the lanes of a warp hold of a product's factors, as floats, is in their slots. From the four lanes from `first` on: rows g and
// g + 8 of a [16, 16], whose eight values are the first there, or a column of b [16, 8], whose four values come after these.
QK_UNCHECKED inline void rows_of_warp(int first, float (&rows)[2][16]) {
  for (int t = 0; t < 4; t++) {
    float of[8];
    std::memcpy(of, simt::slots[(simt::current & ~31u) + first + t], sizeof of);
    for (int i = 0; i < 8; i++) rows[i / 2 % 2][i / 4 * 8 + 2 * t + i % 2] = of[i];
  }
}
QK_UNCHECKED inline void column_of_warp(int first, float (&column)[16]) {
  for (int t = 0; t < 4; t++) {
    float of[12];
    std::memcpy(of, simt::slots[(simt::current & ~31u) + first + t], sizeof of);
    for (int i = 0; i < 4; i++) column[i / 2 * 8 + 2 * t + i % 2] = of[8 + i];
  }
}

// d [16, 8] += a [16, 16] b [16, 8], in the fragments of PTX's figure for mma.m16n8k16: lane 4 g + t holds rows g and g + 8 of a
// and d, column g of b, and columns 2 t and 2 t + 1 of d.
template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  float mine[12], rows[2][16], column[16];
  to_floats<T>(a, mine), to_floats<T>(b, mine + 8);
  std::memcpy(simt::slots[simt::current], mine, sizeof mine);
  simt::yield(simt::kWarp);
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  rows_of_warp(4 * g, rows);
  for (int j = 0; j < 2; j++) {
    column_of_warp(4 * (2 * t + j), column);
    for (int row = 0; row < 2; row++) d[2 * row + j] = add_products(d[2 * row + j], rows[row], column);
  }
  simt::yield(simt::kWarp);
}

#else

// Byte i of the result is byte (selector >> 4 i & 7) of b:a.
__device__ __forceinline__ uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }
// a where mask is 1, else b. In C++ a shift of b would move the mask to its other side, and make it two instructions.
__device__ __forceinline__ uint32_t blend(uint32_t a, uint32_t b, uint32_t mask) {
  uint32_t r;
  asm("lop3.b32 %0, %1, %2, %3, 0xe4;" : "=r"(r) : "r"(a), "r"(b), "r"(mask));
  return r;
}
__device__ __forceinline__ uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
// A value that every lane of the warp has, told to the compiler: what follows from it needs no register of a lane.
__device__ __forceinline__ int of_warp(int v) { return __shfl_sync(0xffffffffu, v, 0); }

template <class V>
__device__ __forceinline__ V at(const unsigned char* from, uint32_t offset) { return *reinterpret_cast<const V*>(from + offset); }
template <class V>
__device__ __forceinline__ void put(unsigned char* to, uint32_t offset, V v) { *reinterpret_cast<V*>(to + offset) = v; }

// 16 bytes that are read once: they take no room in L1. Not wanted: `before` stays, and nothing is read.
__device__ __forceinline__ Words load_streamed(const uint8_t* from, bool wanted, Words before) {
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.u32 p, %5, 0;\n\t@p ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n\t}"
               : "+r"(before.x), "+r"(before.y), "+r"(before.z), "+r"(before.w)
               : "l"(from), "r"(uint32_t(wanted)));
  return before;
}
// 16 bytes that other warps read too. Not ld.global.nc: the kernel before may have written them while this one had started.
__device__ __forceinline__ Words load_cached(const void* from) {
  Words v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
  return v;
}

// v, but what follows from it is computed here, not kept in registers from before a loop.
__device__ __forceinline__ int fresh(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// Programmatic dependent launch: what comes before the wait overlaps with the end of the kernel before. Of a kernel that was not
// launched `early` (launch_shared) both do nothing.
__device__ __forceinline__ void wait_for_previous_grid() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_grid_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
#define QK_MULTIPLY_ADD(T, name)                                                                                            \
  template <>                                                                                                               \
  __device__ __forceinline__ void multiply_add<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {          \
    asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                                    \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                                \
  }
QK_MULTIPLY_ADD(half, "f16")
QK_MULTIPLY_ADD(bfloat, "bf16")
#undef QK_MULTIPLY_ADD

#endif

}  // namespace qk
