#pragma once
#include <cstdint>
#include <vector>

namespace qk {

// At least `bytes` that start at a multiple of 64; what was in them is lost. `memory` is a thread's own, kept for the next call.
inline uint8_t* scratch(std::vector<uint8_t>& memory, int64_t bytes) {
  if (int64_t(memory.size()) < bytes + 64) memory = std::vector<uint8_t>(bytes + 64);
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
}

}  // namespace qk
