#include "lut_post_rows.h"

namespace qk {
extern const PostKernels QK_NAME(lut_post);
const PostKernels QK_NAME(lut_post) = {linear};
}  // namespace qk
