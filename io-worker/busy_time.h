// How long something was going on, as a counter in shared memory.
#pragma once

#include <atomic>
#include <cstdint>

#include "shm/base/clock.h"
#include "shm/base/counter.h"

namespace stoker {

class BusyTime {
 public:
  /// `ns` must outlive it.
  explicit BusyTime(std::atomic<std::uint64_t>& ns) : ns_(ns) {}
  /// What holds from `now` on; the time since the last call counts if that one said busy.
  void is(bool busy, Duration now) {
    if (busy_) add(ns_, static_cast<std::uint64_t>((now - since_).count()));
    busy_ = busy;
    since_ = now;
  }

 private:
  std::atomic<std::uint64_t>& ns_;
  bool busy_ = false;
  Duration since_{};
};

}  // namespace stoker
