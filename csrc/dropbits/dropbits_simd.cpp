// The loops of quant_simd.h with a table for each block, and one more sum for every gate.
#include "../common/quant_simd.h"
#include "dropbits.h"

namespace {

template <class V>
struct Op : qk::DropBits<V> {
  using Args = qk::DropBitsArgs;
  qk::DropBitsTable own;
  Op(const Args& a, const float* const* params, int64_t p) : qk::DropBits<V>(a, params, p, own) { this->cut(own, a, params[2]); }
};

// dx; adds the terms of step, sigma and the gates to sums: those of the first n elements.
template <class V>
QK_LONG V gradients(const qk::DropBits<V>& op, V g, V x, int64_t n, F* sums) {
  const auto there = [n](V terms) { return n < kLanesOf<V> ? leading(terms, n) : terms; };
  V masses[qk::kDropBitsLevels], terms[2];
  typename qk::DropBits<V>::Share share;
  const auto c = op.choose(x);
  const V dx = op.template grad<true>(g, x, c, op.place(c), terms, &share, masses);
  for (int k = 0; k < 2; k++) sums[k] = add(sums[k], there(terms[k]));
  for (int k = 1; k < op.levels; k++)
    if (op.table.level[k].keep > 0.0f) sums[k + 1] = add(sums[k + 1], there(op.gate_gradient(c, share, masses[k], k)));
  return dx;
}

template <class T>
void dropbits_backward(const qk::DropBitsArgs& args, const qk::Blocks& b, int64_t begin, int64_t end, const void* g, const void* x,
                       const float* const* params, void* dx, double* partial) {
  constexpr int kAtOnce = kLanesOf<Wide>;
  const int count = 2 + args.levels - 1;  // step, sigma, the gates
  for (int64_t job = begin; job < end; job++) {
    const auto [p, first, n] = qk::job_of(b, job);
    const T* gi = static_cast<const T*>(g) + first;
    const T* xi = static_cast<const T*>(x) + first;
    T* out = static_cast<T*>(dx) + first;
    qk::DropBitsTable table;
    const qk::DropBits<Wide> op(args, params, p, table);
    op.fill(table, args, params[2], 0, 1);
    F sums[1 + qk::kDropBitsLevels];
    for (int k = 0; k < count; k++) sums[k] = F(0.0f);
    int64_t i = 0;
    for (; i + kAtOnce <= n; i += kAtOnce) {
      prefetch_all<kAtOnce>(gi + i, xi + i, out + i);
      store(out + i, gradients(op, load_as<Wide>(gi + i), load_as<Wide>(xi + i), kAtOnce, sums));
    }
    if (const int64_t rest = n - i) {
      store_part(out + i, gradients(op, load_part_as<Wide>(gi + i, rest), load_part_as<Wide>(xi + i, rest), rest, sums), rest);
    }
    for (int k = 0; k < count; k++) {
      const float keep = k < 2 ? 1.0f : table.level[k - 1].keep;
      partial[job * count + k] = sum(sums[k]) / (keep > 0.0f ? keep : 1.0f);
    }
  }
}

}  // namespace

QK_KERNELS(QuantKernels<DropBitsArgs>, dropbits, {
    {quant_forward<Op, float>, quant_forward<Op, half>, quant_forward<Op, bfloat>},
    {dropbits_backward<float>, dropbits_backward<half>, dropbits_backward<bfloat>}})
