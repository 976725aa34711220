#pragma once
#include "../common/isa.h"
#include "lut_post.h"
QK_DECLARE_KERNELS(PostKernels, lut_post)
#ifdef __x86_64__
QK_DECLARE_KERNELS(PostKernels, lut_post_vnni)  // null where the instruction set has no such instruction
#endif
