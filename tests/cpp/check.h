// The smallest test kit there is: CHECK(condition) prints where it failed, and the program's exit status counts.
#pragma once
#include <cstdio>

inline int failures = 0;
#define CHECK(condition)                                                             \
  do {                                                                               \
    if (!(condition) && ++failures <= 20) std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
  } while (0)
