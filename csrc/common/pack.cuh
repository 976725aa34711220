// What one thread loads, works on and stores at a time: 16 bytes, in one instruction where they are aligned.
#pragma once
#include <cstdint>
#include <cstring>
#include "simt.cuh"
#include "bits.h"

namespace qk {

template <class T> constexpr int kPack = int(16 / sizeof(T));

struct alignas(16) PackBits { uint32_t words[4]; };

template <class... Pointers>
__device__ __forceinline__ bool aligned_to_packs(Pointers... p) { return ((reinterpret_cast<uintptr_t>(p) | ...) & 15) == 0; }

// The first n elements from p on, at most kPack; the others are 0.
template <class T>
__device__ __forceinline__ void load_pack(const T* p, bool aligned, int64_t n, float* out) {
  T v[kPack<T>] = {};
  if (aligned && n >= kPack<T>) {
    const PackBits bits = *reinterpret_cast<const PackBits*>(p);
    memcpy(v, &bits, 16);
  } else {
    for (int j = 0; j < kPack<T>; j++) if (j < n) v[j] = p[j];
  }
  for (int j = 0; j < kPack<T>; j++) out[j] = to_float(v[j]);
}

template <class T>
__device__ __forceinline__ void store_pack(const float* in, bool aligned, int64_t n, T* p) {
  T v[kPack<T>];
  for (int j = 0; j < kPack<T>; j += 2) from_floats(in[j], in[j + 1], v + j);
  if (aligned && n >= kPack<T>) {
    PackBits bits;
    memcpy(&bits, v, 16);
    *reinterpret_cast<PackBits*>(p) = bits;
  } else {
    for (int j = 0; j < kPack<T>; j++) if (j < n) p[j] = v[j];
  }
}

}  // namespace qk
