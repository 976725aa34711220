// Hopper's matrix instruction for four warps, and the barriers and copies that feed it, one named function each, with its twin
// for the host emulator. There, what is asynchronous happens at once: a wait that is missing shows as memory read too early.
#pragma once
#include <cstdint>
#include <cstring>
#include "bits.h"
#include "maths.h"
#include "ptx.cuh"
#include "simt.cuh"

namespace qk {

// B of a product, [columns, K] with 64 values of K a row of 128 bytes, eight rows a kilobyte; the 16-byte pieces of row r are
// exchanged: piece j lies at place j ^ (r % 8) ("swizzle 128"). `from`: 16-byte piece, in the address space of shared memory.
QK_HD uint64_t swizzled_rows(uint32_t from) { return uint64_t(from & 0x3ffffu) >> 4 | uint64_t(1) << 16 | uint64_t(64) << 32 | uint64_t(1) << 62; }
constexpr int kWide = 128;           // columns of the product
constexpr int kBarrierBytes = 16;    // that a barrier takes; a GPU's own takes 8

#ifdef QK_SIMT_HOST

using SharedAddress = uint32_t;  // from the start of the block's dynamic memory
inline SharedAddress shared_address(const void* p) { return SharedAddress(static_cast<const unsigned char*>(p) - simt::shared.get()); }

// How many arrive in a phase, how many of them are still to, bytes still to come, and how many phases are over.
inline int32_t* barrier_words(unsigned char* at) { return reinterpret_cast<int32_t*>(at); }
inline void barrier_step(int32_t* b) {
  if (b[1] == 0 && b[2] == 0) b[3]++, b[1] = b[0];
}
inline void barrier_create(unsigned char* at, int count) {
  int32_t* b = barrier_words(at);
  b[0] = b[1] = count, b[2] = b[3] = 0;
}
inline void barriers_are_created() {}
inline void barrier_arrive(unsigned char* at) {
  int32_t* b = barrier_words(at);
  b[1]--;
  barrier_step(b);
}
inline void barrier_expect(unsigned char* at, int bytes) {
  int32_t* b = barrier_words(at);
  b[1]--, b[2] += bytes;
  barrier_step(b);
}
inline void barrier_wait(unsigned char* at, int parity) {
  while ((barrier_words(at)[3] & 1) == parity) simt::yield(simt::kPoll);
}
inline void bulk_copy(unsigned char* to, const void* from, int bytes, unsigned char* barrier) {
  std::memcpy(to, from, bytes);
  int32_t* b = barrier_words(barrier);
  b[2] -= bytes;
  barrier_step(b);
}

inline void products_begin() {}
inline void products_commit() {}
template <int N>
void products_wait() {}

inline float wide_columns[32][kWide][16];  // of each warp: b as floats

// d [64, 128] (+)= a [64, 16] b [16, 128]: of each warp, 16 rows; fragments as those of mma.m16n8k16, d of 16 tiles of 8 columns.
// b is read when a lane comes, and again when its warp has: what changes it in between was let go on too early.
template <class T>
void multiply_wide(float (&d)[kWide / 2], const uint32_t (&a)[4], uint64_t b, bool add) {
  float mine[8], rows[2][16];
  to_floats<T>(a, mine);
  std::memcpy(simt::slots[simt::current], mine, sizeof mine);
  const uint32_t start = uint32_t(b & 0x3fff) << 4, eight = uint32_t(b >> 32 & 0x3fff) << 4;
  uint32_t words[2][kWide / 32][2][4];  // of a quarter of the columns
  const auto read = [&](uint32_t (&to)[kWide / 32][2][4]) {
    for (int i = 0; i < kWide / 32; i++)
      for (int piece = 0; piece < 2; piece++) {
        const int n = i * 32 + simt::lane();
        const uint32_t at = start + n / 8 * eight + n % 8 * 128 + piece * 16;
        std::memcpy(to[i][piece], simt::shared.get() + (at ^ (at >> 7 & 7) << 4), sizeof to[i][piece]);
      }
  };
  read(words[0]);
  auto& columns = wide_columns[simt::current / 32];
  for (int i = 0; i < kWide / 32; i++)
    for (int piece = 0; piece < 2; piece++) to_floats<T>(words[0][i][piece], columns[i * 32 + simt::lane()] + 8 * piece);
  simt::yield(simt::kWarp);
  read(words[1]);
  if (std::memcmp(words[0], words[1], sizeof words[0])) throw std::runtime_error("memory that a product reads was written meanwhile");
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  rows_of_warp(4 * g, rows);
  for (int i = 0; i < kWide / 2; i++) {
    const int column = i / 4 * 8 + 2 * t + i % 2;
    d[i] = add_products(add ? d[i] : 0, rows[i / 2 % 2], columns[column]);
  }
  simt::yield(simt::kWarp);
}

#else

using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress shared_address(const void* p) { return SharedAddress(__cvta_generic_to_shared(p)); }

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void barrier_create(unsigned char* at, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(at)), "r"(count) : "memory");
}
// To the engine that copies; then __syncthreads().
__device__ __forceinline__ void barriers_are_created() { asm volatile("fence.mbarrier_init.release.cluster;\n\tfence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void barrier_arrive(unsigned char* at) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(at)) : "memory");
}
// Arrives, and so many bytes of copies have to.
__device__ __forceinline__ void barrier_expect(unsigned char* at, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(at)), "r"(bytes) : "memory");
}
// Until the phase of this parity is over: 0, 1, 0, ...
__device__ __forceinline__ void barrier_wait(unsigned char* at, int parity) {
  uint32_t over;
  do {
    asm volatile("{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\tselp.b32 %0, 1, 0, p;\n\t}"
                 : "=r"(over) : "r"(shared_address(at)), "r"(parity) : "memory");
  } while (!over);
}
__device__ __forceinline__ void bulk_copy(unsigned char* to, const void* from, int bytes, unsigned char* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}

// Before products whose registers, of a or d, were written since the last ones.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last N groups of products are there.
template <int N>
__device__ __forceinline__ void products_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory"); }

template <class T>
__device__ __forceinline__ void multiply_wide(float (&d)[kWide / 2], const uint32_t (&a)[4], uint64_t b, bool add);
#define QK_D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define QK_MULTIPLY_WIDE(T, name)                                                                                                \
  template <>                                                                                                                    \
  __device__ __forceinline__ void multiply_wide<T>(float (&d)[kWide / 2], const uint32_t (&a)[4], uint64_t b, bool add) {        \
    asm volatile(                                                                                                                \
        "{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %69, 0;\n\t"                                                                       \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " "                                                         \
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                       \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                       \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                                      \
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n\t}"                                                                            \
        : QK_D(0), QK_D(8), QK_D(16), QK_D(24), QK_D(32), QK_D(40), QK_D(48), QK_D(56)                                           \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)));                                                    \
  }
QK_MULTIPLY_WIDE(half, "f16")
QK_MULTIPLY_WIDE(bfloat, "bf16")
#undef QK_MULTIPLY_WIDE
#undef QK_D

#endif
#endif

}  // namespace qk
