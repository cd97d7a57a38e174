// An emulated device on which something does not work.
#pragma once

#include <cstdlib>

namespace stoker::device {

/// STOKER_EMULATION_TROUBLE (emulation/trouble.h) for as long as it lives.
class EmulatedTrouble {
 public:
  explicit EmulatedTrouble(const char* trouble) { ::setenv("STOKER_EMULATION_TROUBLE", trouble, 1); }
  ~EmulatedTrouble() { ::unsetenv("STOKER_EMULATION_TROUBLE"); }
  EmulatedTrouble(const EmulatedTrouble&) = delete;
  EmulatedTrouble& operator=(const EmulatedTrouble&) = delete;
};

}  // namespace stoker::device
