// How a block-wise op is cut into jobs: P blocks of L contiguous elements, each block into chunks of a fixed size (not one
// per thread), so that the order of every sum, and with it every bit, does not depend on the number of threads.
#pragma once
#include <cstdint>
#include "hd.h"

namespace qk {

constexpr int64_t kChunk = 8192;  // elements: x, g and dx of one chunk (96 KiB) stay in a core's L2

struct Blocks {
  int64_t L;       // elements a block
  int64_t chunks;  // chunks a block: ceil(L / kChunk)
  int64_t jobs;    // P * chunks; job j is chunk j % chunks of block j / chunks
};

// One job: n elements of block p, from element `first` of x on.
struct Job { int64_t p, first, n; };

QK_HD Job job_of(const Blocks& b, int64_t job) {
  if (b.chunks == 1) return {job, job * b.L, b.L};  // two divisions less
  const int64_t p = job / b.chunks, start = job % b.chunks * kChunk;
  return {p, p * b.L + start, b.L - start < kChunk ? b.L - start : kChunk};
}

inline Blocks make_blocks(int64_t P, int64_t numel) {
  const int64_t L = numel / P, chunks = (L + kChunk - 1) / kChunk;
  return {L, chunks, P * chunks};
}

}  // namespace qk
