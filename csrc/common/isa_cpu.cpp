#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>
#include "export.h"
#ifdef __x86_64__
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

const char* const kNames[] = {"scalar", "avx2", "avx512", "avx512bf16", "amx"};

// AMX-BF16 and AMX-INT8: the processor has them, the system saves its registers, and lets this process use them.
bool may_use_amx() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d;
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25, kXsave = 1u << 27;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kXsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (kBf16 | kTile | kInt8)) != (kBf16 | kTile | kInt8)) return false;
  unsigned saved, upper;
  asm volatile("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM of Linux 5.16
  return (saved & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

qk::Isa find_best() {
#ifdef __x86_64__
  unsigned a, b, c = 0, d;
  constexpr unsigned kF16c = 1u << 29;  // clang 14's __builtin_cpu_supports does not know it
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__get_cpuid(1, &a, &b, &c, &d) || !(c & kF16c))
    return qk::kScalar;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vl"))
    return qk::kAvx2;
  if (!__builtin_cpu_supports("avx512bf16")) return qk::kAvx512;
  return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni") && may_use_amx() ? qk::kAmx : qk::kAvx512Bf16;
#else
  return qk::kScalar;
#endif
}

qk::Isa best() {
  static const qk::Isa found = find_best();
  return found;
}

// Those that this machine has: "scalar, avx2, ...".
std::string isas() {
  std::string can;
  for (int i = 0; i <= best(); i++) can += std::string(i ? ", " : "") + kNames[i];
  return can;
}

qk::Isa parse(const std::string& name) {
  for (int i = 0; i <= best(); i++)
    if (name == kNames[i]) return qk::Isa(i);
  STD_TORCH_CHECK(false, "QKERNELS_ISA must be one of ", isas(), " on this machine, got ", name);
}

std::atomic<int>& current() {
  static std::atomic<int> value = [] {
    const char* wanted = std::getenv("QKERNELS_ISA");
    if (wanted && *wanted) return int(parse(wanted));
    return int(best() == qk::kAvx512Bf16 && !qk::is_amd() ? qk::kAvx512 : best());
  }();
  return value;
}

// The instruction set in use; a name sets it first, "" only asks.
std::string isa(std::string name) {
  if (!name.empty()) current() = parse(name);
  return kNames[current()];
}

QK_EXPORT(cpu, isa, "(str name) -> str")
QK_EXPORT(cpu, isas, "() -> str")

}  // namespace

qk::Isa qk::isa() { return Isa(current().load(std::memory_order_relaxed)); }

#ifdef __x86_64__
bool qk::has_vnni() {
  static const bool found = (__builtin_cpu_init(), __builtin_cpu_supports("avx512vnni"));
  return found;
}
bool qk::has_vbmi() {
  static const bool found = (__builtin_cpu_init(), __builtin_cpu_supports("avx512vbmi"));
  return found;
}
bool qk::has_gfni() {
  static const bool found = (__builtin_cpu_init(), __builtin_cpu_supports("gfni"));
  return found;
}
bool qk::is_amd() {
  static const bool found = [] {
    unsigned a, name[3];  // "AuthenticAMD", of which words 1 and 2 come the other way round
    return __get_cpuid(0, &a, &name[0], &name[1], &name[2]) && !memcmp(name, "AuthcAMDenti", 12);
  }();
  return found;
}
#else
bool qk::has_vnni() { return false; }
bool qk::has_vbmi() { return false; }
bool qk::has_gfni() { return false; }
bool qk::is_amd() { return false; }
#endif
