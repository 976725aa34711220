// The loops of every block-wise quantizer: x [P, L] with one set of parameters a block. An op brings its maths
// (csrc/<op>/<op>.h):
//   template <class V> struct Op { using Args; static constexpr int kParams;
//     Op(const Args&, const float* const* params, int64_t p);   // one block's constants, broadcast
//     V value(V x) const;                                       // forward
//     V grad(V g, V x, V* terms) const;                         // dx, and the kParams terms of the parameters' gradients
//     static constexpr int kVectors;                            // not on every op: see below
//     struct Start; Start start(V x) const;                     // only if grad is long: its first half; and its second,
//     V grad(V g, const Start&, V* terms) const; };             // so that these chains run beside those of other vectors
#pragma once
#include "blocks.h"
#include "wide.h"
#include "quant_kernels.h"

namespace {

// A page ahead: the hardware's prefetchers stop at the end of a page, which shows where x comes from the L3
// cache. Reading beyond an array is harmless to a prefetch.
constexpr int64_t kAhead = 4096;  // bytes
template <int write, class T>
QK_IN void prefetch(const T* p) { __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead, write); }

template <int n, class T>
QK_IN void prefetch_all(const T* g, const T* x, T* dx) {
  for (int i = 0; i < n; i += kLanes) prefetch<0>(g + i), prefetch<0>(x + i), prefetch<1>(dx + i);
}

// How many vectors at once suit an op's gradient: kVectors where it has one.
template <class Op>
constexpr int vectors() {
  if constexpr (requires { Op::kVectors; }) return Op::kVectors;
  else return 2;
}

constexpr int kTile = 8;  // vectors, or so many at once: what is kept between the halves of a long gradient stays in the L1 cache

template <template <class> class Op, class T>
void quant_forward(const typename Op<F>::Args& args, const qk::Blocks& b, int64_t begin, int64_t end, const void* x,
                   const float* const* params, void* y) {
  for (int64_t job = begin; job < end; job++) {
    const auto [p, first, n] = qk::job_of(b, job);
    const T* in = static_cast<const T*>(x) + first;
    T* out = static_cast<T*>(y) + first;
    const Op<F> op(args, params, p);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      prefetch<0>(in + i);
      prefetch<1>(out + i);
      store(out + i, op.value(load(in + i)));
    }
    if (i < n) store_part(out + i, op.value(load_part(in + i, n - i)), n - i);
  }
}

template <template <class> class Op, class T>
void quant_backward(const typename Op<F>::Args& args, const qk::Blocks& b, int64_t begin, int64_t end, const void* g,
                    const void* x, const float* const* params, void* dx, double* partial) {
  using V = typename AtOnce<vectors<Op<F>>()>::V;
  constexpr int kParams = Op<F>::kParams, kAtOnce = kLanesOf<V>;
  for (int64_t job = begin; job < end; job++) {
    const auto [p, first, n] = qk::job_of(b, job);
    const T* gi = static_cast<const T*>(g) + first;
    const T* xi = static_cast<const T*>(x) + first;
    T* out = static_cast<T*>(dx) + first;
    const Op<V> op(args, params, p);
    F sums[kParams];
    V terms[kParams];
    for (F& s : sums) s = F(0.0f);
    int64_t i = 0;
    if constexpr (requires { typename Op<V>::Start; }) {
      typename Op<V>::Start starts[kTile];
      while (i + kTile * kAtOnce <= n) {
        for (int t = 0; t < kTile; t++) starts[t] = op.start(load_as<V>(xi + i + t * kAtOnce));
        for (int t = 0; t < kTile; t++, i += kAtOnce) {
          prefetch_all<kAtOnce>(gi + i, xi + i, out + i);
          store(out + i, op.grad(load_as<V>(gi + i), starts[t], terms));
          for (int k = 0; k < kParams; k++) sums[k] = add(sums[k], terms[k]);
        }
      }
    }
    for (; i + kAtOnce <= n; i += kAtOnce) {
      prefetch_all<kAtOnce>(gi + i, xi + i, out + i);
      store(out + i, op.grad(load_as<V>(gi + i), load_as<V>(xi + i), terms));
      for (int k = 0; k < kParams; k++) sums[k] = add(sums[k], terms[k]);
    }
    if (i < n) {  // a missing lane's terms are not always 0: 0 times what overflowed is NaN
      store_part(out + i, op.grad(load_part_as<V>(gi + i, n - i), load_part_as<V>(xi + i, n - i), terms), n - i);
      for (int k = 0; k < kParams; k++) sums[k] = add(sums[k], leading(terms[k], n - i));
    }
    for (int k = 0; k < kParams; k++) partial[job * kParams + k] = sum(sums[k]);
  }
}

}  // namespace

// The table of one op for this file's instruction set.
#define QK_QUANT_KERNELS(Op)                                                                                  \
  {{quant_forward<Op, float>, quant_forward<Op, qk::half>, quant_forward<Op, qk::bfloat>},                     \
   {quant_backward<Op, float>, quant_backward<Op, qk::half>, quant_backward<Op, qk::bfloat>}}
