// The loops of quant_simd.h with a table for each block, and one more sum for every gate.
#include "../common/quant_simd.h"
#include "dropbits.h"

namespace {

template <class V>
struct Op : qk::DropBits<V> {
  using Args = qk::DropBitsArgs;
  qk::DropBitsTable own;
  Op(const Args& a, const float* const* params, int64_t p) : qk::DropBits<V>(a, params, p, own) {
    this->fill(own, a, params[2], 0, 1);
  }

  QK_LONG V value(V x) const { return qk::DropBits<V>::value(x); }

  // dx; adds the terms of step, sigma and the gates to sums: those of the first n elements.
  QK_LONG V gradients(V g, V x, int64_t n, F* sums) const {
    const auto there = [n](V terms) { return n < kWide ? leading(terms, n) : terms; };
    V masses[qk::kDropBitsLevels], terms[2];
    typename qk::DropBits<V>::Share share;
    const auto c = this->choose(x);
    const V dx = this->template grad<true>(g, x, c, terms, &share, masses);
    for (int k = 0; k < 2; k++) sums[k] = add(sums[k], there(terms[k]));
    for (int k = 1; k < this->levels; k++)
      if (own.level[k].keep > 0.0f) sums[k + 1] = add(sums[k + 1], there(this->gate_gradient(c, share, masses[k], k)));
    return dx;
  }
};

template <class T>
void dropbits_backward(const qk::DropBitsArgs& args, const qk::Blocks& b, int64_t begin, int64_t end, const void* g, const void* x,
                       const float* const* params, void* dx, double* partial) {
  const int count = 2 + args.levels - 1;  // step, sigma, the gates
  for (int64_t job = begin; job < end; job++) {
    const auto [p, first, n] = qk::job_of(b, job);
    const T* gi = static_cast<const T*>(g) + first;
    const T* xi = static_cast<const T*>(x) + first;
    T* out = static_cast<T*>(dx) + first;
    const Op<Wide> op(args, params, p);
    F sums[1 + qk::kDropBitsLevels];
    for (int k = 0; k < count; k++) sums[k] = F(0.0f);
    int64_t i = 0;
    for (; i + kWide <= n; i += kWide) store_wide(out + i, op.gradients(load_wide(gi + i), load_wide(xi + i), kWide, sums));
    if (const int64_t rest = n - i) {
      store_wide_part(out + i, op.gradients(load_wide_part(gi + i, rest), load_wide_part(xi + i, rest), rest, sums), rest);
    }
    for (int k = 0; k < count; k++) partial[job * count + k] = sum(sums[k]);
  }
}

}  // namespace

namespace qk {
extern const QuantKernels<DropBitsArgs> QK_NAME(dropbits);
const QuantKernels<DropBitsArgs> QK_NAME(dropbits) = {
    {quant_forward<Op, float>, quant_forward<Op, half>, quant_forward<Op, bfloat>},
    {dropbits_backward<float>, dropbits_backward<half>, dropbits_backward<bfloat>}};
}  // namespace qk
