#include "soft_assign.cuh"
namespace qk {
extern const SoftAssignCudaKernels soft_assign_cuda;
const SoftAssignCudaKernels soft_assign_cuda = {
    {soft_assign_forward<float>, soft_assign_forward<half>, soft_assign_forward<bfloat>},
    {soft_assign_backward<float>, soft_assign_backward<half>, soft_assign_backward<bfloat>}};
}  // namespace qk
