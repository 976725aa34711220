// Work on torch's threads, of parts that take alike long, on processors that others may be using too.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <torch/csrc/stable/ops.h>

namespace qk {

// [0, all), by as many threads as there are times `least` in it: each takes body = start() and calls body(begin, end) as often as
// there is work for it. Three quarters are shared out evenly, always the same part to the same thread, which may have it in its caches;
// what is left goes to those that are done first, each time half of what would be a thread's share of it, so that all end together.
template <class Start> void balanced(int64_t all, int64_t least, Start&& start) {
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (all + least - 1) / least);
  if (threads <= 1) return start()(0, all);
  const int64_t own = all * 3 / 4 / threads;
  std::atomic<int64_t> next{own * threads};
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {  // several, where torch has fewer to give
    const auto body = start();
    if (own > 0) body(begin * own, end * own);
    for (int64_t from = next.load(std::memory_order_relaxed); from < all;) {
      const int64_t to = std::min(all, from + std::max(least, (all - from) / (2 * threads)));
      if (!next.compare_exchange_weak(from, to, std::memory_order_relaxed)) continue;  // another was faster; from is what it left
      body(from, to);
      from = next.load(std::memory_order_relaxed);
    }
  });
}

}  // namespace qk
