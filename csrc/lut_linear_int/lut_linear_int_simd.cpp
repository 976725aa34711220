#include "lut_linear_int_rows.h"

namespace qk {
extern const PostKernels QK_NAME(lut_linear_int);
const PostKernels QK_NAME(lut_linear_int) = {linear};
}  // namespace qk
