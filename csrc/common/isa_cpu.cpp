#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <string>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>
#include "export.h"

namespace {

const char* const kNames[] = {"scalar", "avx2", "avx512", "avx512bf16"};

qk::Isa best() {
#ifdef __x86_64__
  __builtin_cpu_init();
  auto has = [](bool a, bool b, bool c, bool d) { return a && b && c && d; };
  if (!has(__builtin_cpu_supports("avx2"), __builtin_cpu_supports("fma"), __builtin_cpu_supports("f16c"), true)) return qk::kScalar;
  if (has(__builtin_cpu_supports("avx512f"), __builtin_cpu_supports("avx512bw"), __builtin_cpu_supports("avx512dq"),
          __builtin_cpu_supports("avx512vl")))
    return __builtin_cpu_supports("avx512bf16") ? qk::kAvx512Bf16 : qk::kAvx512;
  return qk::kAvx2;
#else
  return qk::kScalar;
#endif
}

qk::Isa parse(const std::string& name) {
  for (int i = 0; i <= best(); i++)
    if (name == kNames[i]) return qk::Isa(i);
  std::string can;
  for (int i = 0; i <= best(); i++) can += std::string(i ? ", " : "") + kNames[i];
  STD_TORCH_CHECK(false, "QKERNELS_ISA must be one of ", can, " on this machine, got ", name);
}

std::atomic<int>& current() {
  static std::atomic<int> value = [] {
    const char* wanted = std::getenv("QKERNELS_ISA");
    return int(wanted && *wanted ? parse(wanted) : std::min(best(), qk::kAvx512));
  }();
  return value;
}

// The instruction set in use; a name sets it first, "" only asks.
std::string isa(std::string name) {
  if (!name.empty()) current() = parse(name);
  return kNames[current()];
}

QK_EXPORT(cpu, isa, "(str name) -> str")

}  // namespace

qk::Isa qk::isa() { return Isa(current().load(std::memory_order_relaxed)); }
