// What channel_error offers for one instruction set, by dtype: 0 float32, 1 float16, 2 bfloat16.
#pragma once
#include "../common/blocks.h"
#include "../common/isa.h"

namespace qk {

struct ChannelErrorArgs {
  float lo, hi, step;
};

struct ChannelErrorKernels {
  // Long runs of one channel, x [rows, L] cut as blocks.h says: jobs [begin, end) are added to
  // partial [jobs, 3].
  void (*runs[3])(const ChannelErrorArgs&, const Blocks&, int64_t begin, int64_t end, const void* x, double* partial);
  // Channels side by side, x [rows, width]: a group is `group` rows; groups [begin, end) are added
  // to partial [groups, 3, width].
  void (*columns[3])(const ChannelErrorArgs&, int64_t rows, int64_t width, int64_t group, int64_t begin, int64_t end,
                     const void* x, double* partial);
};

}  // namespace qk

QK_DECLARE_KERNELS(ChannelErrorKernels, channel_error)
