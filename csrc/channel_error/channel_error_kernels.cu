#include "channel_error.cuh"
namespace qk {
extern const ChannelErrorCudaKernels channel_error_cuda;
const ChannelErrorCudaKernels channel_error_cuda = {
    channel_parts, {channel_error<float>, channel_error<half>, channel_error<bfloat>}};
}  // namespace qk
