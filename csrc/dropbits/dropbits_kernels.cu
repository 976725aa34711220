#include "dropbits.cuh"
namespace qk {
extern const DropBitsCudaKernels dropbits_cuda;
const DropBitsCudaKernels dropbits_cuda = {
    {dropbits_forward<float>, dropbits_forward<half>, dropbits_forward<bfloat>},
    {dropbits_backward<float>, dropbits_backward<half>, dropbits_backward<bfloat>}};
}  // namespace qk
