#pragma once
#include "../common/isa.h"
#include "../common/quant_kernels.h"
#include "post.h"
QK_DECLARE_KERNELS(QuantKernels<PostArgs>, post)
