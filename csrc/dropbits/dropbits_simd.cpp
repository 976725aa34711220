// The loops of quant_simd.h with one more sum for every gate.
#include "../common/quant_simd.h"
#include "dropbits.h"

namespace {

template <class T>
void dropbits_backward(const qk::DropBitsArgs& args, const qk::Blocks& b, int64_t begin, int64_t end, const void* g, const void* x,
                       const float* const* params, void* dx, double* partial) {
  const int count = 2 + args.levels - 1;  // step, sigma, the gates
  for (int64_t job = begin; job < end; job++) {
    const int64_t p = job / b.chunks, start = job % b.chunks * qk::kChunk;
    const int64_t n = b.L - start < qk::kChunk ? b.L - start : qk::kChunk;
    const T* gi = static_cast<const T*>(g) + p * b.L + start;
    const T* xi = static_cast<const T*>(x) + p * b.L + start;
    T* out = static_cast<T*>(dx) + p * b.L + start;
    const qk::DropBits<F> op(args, params, p);
    F sums[2 + qk::kMaxLevels], terms[2];
    for (int k = 0; k < count; k++) sums[k] = F(0.0f);
    for (int64_t i = 0; i < n; i += kLanes) {
      const bool whole = i + kLanes <= n;  // else g is 0 in the missing lanes
      const F dxi = whole ? op.grad(load(gi + i), load(xi + i), terms, sums + 2)
                          : op.grad(load_part(gi + i, n - i), load_part(xi + i, n - i), terms, sums + 2);
      if (whole) store(out + i, dxi); else store_part(out + i, dxi, n - i);
      for (int k = 0; k < 2; k++) sums[k] = sums[k] + terms[k];
    }
    for (int k = 0; k < count; k++) partial[job * count + k] = sum(sums[k]);
  }
}

}  // namespace

namespace qk {
extern const QuantKernels<DropBitsArgs> QK_NAME(dropbits);
const QuantKernels<DropBitsArgs> QK_NAME(dropbits) = {
    {quant_forward<DropBits, float>, quant_forward<DropBits, half>, quant_forward<DropBits, bfloat>},
    {dropbits_backward<float>, dropbits_backward<half>, dropbits_backward<bfloat>}};
}  // namespace qk
