#include "lut_prefill.cuh"
namespace qk { QK_LUT_PREFILL(3) }
