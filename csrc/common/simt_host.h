// Runs a CUDA kernel on the CPU, block by block, every thread a fiber: the index arithmetic and the barriers of a kernel are
// tested without a GPU. A missing barrier shows in only some orders of execution (simt::order): lanes and warps forward, in
// reverse, shuffled, or greedy, where a warp runs on to the next block barrier before another starts. A barrier that some
// threads never reach is a deadlock, and throws.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>
#if !defined(__x86_64__) || !defined(__linux__)
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __restrict__

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace simt {

struct Index { unsigned x = 0, y = 0, z = 0; };
enum Wait { kRun, kBlock, kWarp, kPoll };  // kPoll: for another thread to change memory
constexpr size_t kStack = 16 << 10;

#if defined(__x86_64__) && defined(__linux__)

using Context = void*;  // the top of the stack of one that waits: the registers that a call keeps, and where it goes on

// Goes on with `to`; `from` is where it was left. (swapcontext would also tell the kernel of a signal mask, each time: most of the
// time of a test. Not for shadow stacks, which are off unless asked for.)
extern "C" void simt_go_on(Context* from, Context to);
asm(R"(
  .pushsection .text
  .weak simt_go_on
  .type simt_go_on, @function
simt_go_on:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
  .size simt_go_on, .-simt_go_on
  .popsection
)");
inline void go_on(Context& from, Context& to) { simt_go_on(&from, to); }
// `context` is to start entry, which does not return, on this stack of kStack bytes.
inline void prepare(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(uintptr_t(stack + kStack) & ~uintptr_t(15)) - 8;  // aligned as after a call
  std::fill(top, top + 8, nullptr);
  top[6] = reinterpret_cast<void*>(entry);
  context = top;
}

#else

using Context = ucontext_t;
inline void go_on(Context& from, Context& to) { swapcontext(&from, &to); }
inline void prepare(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#endif

struct Lane {
  Context context;
  std::unique_ptr<char[]> stack;
  bool done = false;
  Wait wait = kRun;
};

inline std::vector<Lane> lanes;
inline Context home;
inline unsigned current = 0;
inline std::function<void()> body;
inline unsigned char slots[1024][64];  // what a warp collective exchanges, one slot a thread
inline Index thread, block, threads, blocks;
inline std::unique_ptr<unsigned char[]> shared;  // of the block that runs: exactly as large as asked for
enum Order { kForward, kReverse, kShuffled, kGreedy };
inline constexpr Order kOrders[] = {kForward, kReverse, kShuffled, kGreedy};
inline Order order = kForward;

inline void yield(Wait why) {
  const unsigned me = current;
  lanes[me].wait = why;
  go_on(lanes[me].context, home);
}
inline int lane() { return int(current & 31); }
inline void entry() {
  body();
  lanes[current].done = true;
  go_on(lanes[current].context, home);
}
// A warp collective: every lane posts its value, then reads that of lane `source`.
template <class T>
T exchange(T value, int source) {
  const unsigned warp = current & ~31u;
  std::memcpy(slots[current], &value, sizeof value);
  yield(kWarp);
  std::memcpy(&value, slots[warp + source], sizeof value);
  yield(kWarp);
  return value;
}

// Each lane of a warp up to its next barrier or collective; whether anything moved.
inline bool run_warp(unsigned begin, unsigned end, std::mt19937& random) {
  std::vector<unsigned> sequence(end - begin);
  std::iota(sequence.begin(), sequence.end(), begin);
  if (order == kReverse) std::reverse(sequence.begin(), sequence.end());
  if (order == kShuffled) std::shuffle(sequence.begin(), sequence.end(), random);
  bool progress = false;
  for (unsigned t : sequence)
    if (!lanes[t].done && lanes[t].wait == kRun) {
      current = t;
      thread = {t};
      go_on(home, lanes[t].context);
      progress |= lanes[t].wait != kPoll;
    }
  const auto first = lanes.begin() + begin, last = lanes.begin() + end;
  if (std::all_of(first, last, [](const Lane& l) { return !l.done && l.wait == kWarp; })) {
    std::for_each(first, last, [](Lane& l) { l.wait = kRun; });
    progress = true;
  }
  return progress;
}

inline void run_block(unsigned count) {
  lanes.resize(count);
  for (Lane& l : lanes) {
    l.done = false, l.wait = kRun;
    if (!l.stack) l.stack.reset(new char[kStack]);
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(l.stack.get(), kStack);  // the lane of the last block left its frames there
#endif
    prepare(l.context, l.stack.get(), entry);
  }
  std::vector<unsigned> warps((count + 31) / 32);
  std::iota(warps.begin(), warps.end(), 0u);
  std::mt19937 random(block.x + block.y + block.z + 1);
  for (int idle = 0;;) {
    bool progress = false;
    if (order == kReverse || order == kGreedy) std::sort(warps.begin(), warps.end(), std::greater<>());
    if (order == kShuffled) std::shuffle(warps.begin(), warps.end(), random);
    for (unsigned w : warps)
      while (run_warp(w * 32, std::min(count, w * 32 + 32), random)) {
        progress = true;
        if (order != kGreedy) break;
      }
    if (std::all_of(lanes.begin(), lanes.end(), [](const Lane& l) { return l.done; })) return;
    if (std::all_of(lanes.begin(), lanes.end(), [](const Lane& l) { return l.done || l.wait == kBlock; })) {
      for (Lane& l : lanes) l.wait = kRun;
      progress = true;
    }
    bool polling = false;
    for (Lane& l : lanes)
      if (!l.done && l.wait == kPoll) l.wait = kRun, polling = true;
    idle = progress ? 0 : idle + 1;
    if (idle > (polling ? 2 : 0)) throw std::runtime_error("deadlock: a barrier that some threads never reach");
  }
}

template <class F>
void launch(Index grid, unsigned count, size_t shared_bytes, F kernel) {
  body = kernel;
  threads = {count, 1, 1};
  blocks = grid;
  shared.reset(new unsigned char[shared_bytes]);
  for (unsigned b = 0; b < grid.x * grid.y * grid.z; b++) {
    block = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
    std::memset(shared.get(), 0xff, shared_bytes);  // poison: NaN, whatever the float type
    run_block(count);
  }
}

}  // namespace simt

#define threadIdx simt::thread
#define blockIdx simt::block
#define blockDim simt::threads
#define gridDim simt::blocks
inline void __syncthreads() { simt::yield(simt::kBlock); }
