#include "lut_dequantize.cuh"

namespace qk {
cudaError_t lut_dequantize_cuda(const Packed& w, int count, void* out, int dtype, cudaStream_t stream) {
  return lut_dequantize_any(w, count, out, dtype, stream);
}
}  // namespace qk
