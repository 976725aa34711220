#include "../common/quant_simd.h"
#include "post.h"
QK_KERNELS(QuantKernels<PostArgs>, post, QK_QUANT_KERNELS(Post))
