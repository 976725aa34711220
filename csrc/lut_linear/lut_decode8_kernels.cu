#include "lut_decode.cuh"
namespace qk { QK_LUT_DECODE(8) }
