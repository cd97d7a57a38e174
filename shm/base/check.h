// STOKER_CHECK: for what only a bug can make false. On in release builds; prints and aborts.
// Never use it to validate input: that is what Result (result.h) is for.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace stoker {
[[noreturn]] inline void check_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "stoker: internal check failed: %s at %s:%d\n", expression, file, line);
  std::abort();
}
}  // namespace stoker

#define STOKER_CHECK(expression) \
  ((expression) ? static_cast<void>(0) : ::stoker::check_failed(#expression, __FILE__, __LINE__))
