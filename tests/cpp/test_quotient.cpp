// The vector quotient (two corrections by exact remainders) has the bits of a division wherever a code can depend on it.
// Compiled with -DQK_ISA=512 or 2.
#include <cmath>
#include <cstdlib>
#include <random>
#include "check.h"
#include "../../csrc/common/simd.h"

static void compare(float s, const float* x) {
  float got[kLanes];
  lanes(qk::Quotient<F>(s)(load(x)), got);
  for (int i = 0; i < kLanes; i++) {
    const float want = x[i] / s;
    if (!(std::fabs(want) < 32768.0f)) CHECK(std::isnan(want) ? std::isnan(got[i]) : got[i] * want > 0 && std::fabs(got[i]) >= 32768.0f);
    else if (std::fabs(want) < 9.1e-13f) CHECK(std::fabs(got[i] - want) <= 1e-6f * std::fabs(want) + 1e-38f);
    else CHECK(got[i] == want);
  }
}

int main() {
  std::mt19937_64 random(1);
  float x[kLanes];
  const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 3e38f, -3e38f, 1e-45f, -1e-40f, 1.17549435e-38f};
  for (float s : {1e-38f, 9.3e-10f, 9.4e-10f, 0.1f, 1.0f, 3.0f, 1.07e9f, 1.08e9f, 3e38f}) {
    for (int i = 0; i < kLanes; i++) x[i] = special[i % 10];
    compare(s, x);
  }
  for (int n = 0; n < 2'000'000; n++) {  // 32 million quotients
    const uint64_t r = random();
    // step: any mantissa, exponent in [-30, 29]; every 16th near a power of two, where 1 / s rounds worst
    uint32_t mantissa = r & 0x7fffff;
    if (n % 16 == 0) mantissa = (r & 1) ? r >> 1 & 15 : 0x7fffff - (r >> 1 & 15);
    const float s = std::ldexp(1.0f + mantissa * 0x1p-23f, int(r >> 24 & 0xff) % 60 - 30);
    for (int i = 0; i < kLanes; i++) {
      const uint64_t q = random();
      const float value = std::ldexp(1.0f + (q & 0x7fffff) * 0x1p-23f, int(q >> 24 & 0xff) % 45 - 30);
      // half of them beside a tie or a level: (k + 1/2) s rounded, and its neighbors
      const float tie = float((q >> 32 & 0xff) * 0.5) * s;
      const float near = std::nextafter(std::nextafter(tie, q & 1 << 30 ? 1e30f : -1e30f), q >> 40 & 1 ? 1e30f : -1e30f);
      x[i] = (q >> 41 & 1 ? -1.0f : 1.0f) * (q >> 42 & 1 ? near : value * s);
    }
    compare(s, x);
  }
  std::printf("%d failures\n", failures);
  return failures != 0;
}
