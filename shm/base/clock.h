// Time is passed in. Nobody else calls steady_clock::now() (tests/tidy enforces it).
#pragma once

#include <chrono>
#include <cstdint>

namespace stoker {

using Duration = std::chrono::nanoseconds;

class Clock {
 public:
  virtual ~Clock() = default;
  /// Monotonic; only differences mean anything.
  [[nodiscard]] virtual Duration now() const = 0;
};

class SteadyClock final : public Clock {
 public:
  [[nodiscard]] Duration now() const override {
    return std::chrono::duration_cast<Duration>(std::chrono::steady_clock::now().time_since_epoch());
  }
};

/// For tests and the simulator: time moves only when told to.
class ManualClock final : public Clock {
 public:
  [[nodiscard]] Duration now() const override { return now_; }
  void advance(Duration by) { now_ += by; }

 private:
  Duration now_{};
};

inline double seconds(Duration d) { return std::chrono::duration<double>(d).count(); }

}  // namespace stoker
