#pragma once
#include "../common/isa.h"
#include "../common/quant_kernels.h"
#include "cpq.h"
QK_DECLARE_KERNELS(QuantKernels<CpqArgs>, cpq_argmax)
QK_DECLARE_KERNELS(QuantKernels<CpqArgs>, cpq_argmax_truncated)
QK_DECLARE_KERNELS(QuantKernels<CpqArgs>, cpq_full)
QK_DECLARE_KERNELS(QuantKernels<CpqArgs>, cpq_full_truncated)
