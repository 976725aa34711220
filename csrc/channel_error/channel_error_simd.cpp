// The loops over long runs of one channel, and over channels side by side.
#include "../common/simd.h"
#include "channel_error.h"
#include "channel_error_kernels.h"

namespace {

using Sums = qk::ChannelSums<F>;

QK_IN void add(Sums& s, const qk::ChannelErrorArgs& args, F x) { s.add(args.lo, args.hi, args.step, x); }

constexpr int64_t kRows = 32;  // terms that a lane adds in float32 before the sum goes on in double: all have one sign

template <class T>
void runs(const qk::ChannelErrorArgs& args, const qk::Blocks& b, int64_t begin, int64_t end, const void* x, double* partial) {
  for (int64_t job = begin; job < end; job++) {
    const qk::Job part = qk::job_of(b, job);
    const T* in = static_cast<const T*>(x) + part.first;
    double* out = partial + job * 3;
    for (int64_t i = 0; i < part.n;) {
      const int64_t stop = i + kRows * kLanes < part.n ? i + kRows * kLanes : part.n;
      Sums s{F(0.0f), F(0.0f), F(0.0f)};
      for (; i + kLanes <= stop; i += kLanes) add(s, args, load(in + i));
      if (i < stop) add(s, args, load_part(in + i, stop - i));  // a missing lane is 0, and so is its code
      i = stop;
      out[0] += sum(s.a);
      out[1] += sum(s.t);
      out[2] += sum(s.u);
    }
  }
}

// Sixteen columns, or n of them, down the rows of one group.
template <bool part, class T>
QK_IN void column(const qk::ChannelErrorArgs& args, const T* in, int64_t count, int64_t width, int64_t n, double* out) {
  for (int64_t first = 0; first < count; first += kRows) {
    const int64_t end = first + kRows < count ? first + kRows : count;
    Sums s{F(0.0f), F(0.0f), F(0.0f)};
    for (int64_t r = first; r < end; r++) add(s, args, part ? load_part(in + r * width, n) : load(in + r * width));
    float lanes_of[3][kLanes];
    lanes(s.a, lanes_of[0]);
    lanes(s.t, lanes_of[1]);
    lanes(s.u, lanes_of[2]);
    for (int k = 0; k < 3; k++)
      for (int64_t i = 0; i < n; i++) out[k * width + i] += lanes_of[k][i];
  }
}

template <class T>
void columns(const qk::ChannelErrorArgs& args, int64_t rows, int64_t width, int64_t group, int64_t begin, int64_t end,
             const void* x, double* partial) {
  for (int64_t j = begin; j < end; j++) {
    const int64_t first = j * group, count = rows - first < group ? rows - first : group;
    const T* in = static_cast<const T*>(x) + first * width;
    double* out = partial + j * 3 * width;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) column<false>(args, in + i, count, width, kLanes, out + i);
    if (i < width) column<true>(args, in + i, count, width, width - i, out + i);
  }
}

}  // namespace

QK_KERNELS(ChannelErrorKernels, channel_error, {
    {runs<float>, runs<half>, runs<bfloat>}, {columns<float>, columns<half>, columns<bfloat>}})
