#include "../common/quant_simd.h"
#include "post.h"
namespace qk {
extern const QuantKernels<PostArgs> QK_NAME(post);
const QuantKernels<PostArgs> QK_NAME(post) = QK_QUANT_KERNELS(Post);
}  // namespace qk
