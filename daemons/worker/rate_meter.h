// Events per second over the last second and the last minute, in one-second buckets.
#pragma once

#include <array>
#include <cstdint>

#include "shm/base/clock.h"

namespace stoker {

class RateMeter {
 public:
  void add(Duration now, std::uint64_t count) {
    roll(now);
    buckets_[second_ % kBuckets] += count;
  }
  /// Mean rate over the last `window` complete seconds (1 to 60).
  [[nodiscard]] double per_second(Duration now, std::uint64_t window) {
    roll(now);
    std::uint64_t sum = 0;
    for (std::uint64_t i = 1; i <= window && i <= second_; ++i) sum += buckets_[(second_ - i) % kBuckets];
    return static_cast<double>(sum) / static_cast<double>(window);
  }

 private:
  static constexpr std::uint64_t kBuckets = 61;

  void roll(Duration now) {
    const auto second = static_cast<std::uint64_t>(now / std::chrono::seconds(1));
    for (std::uint64_t steps = 0; second_ < second && steps < kBuckets; ++steps)
      buckets_[++second_ % kBuckets] = 0;
    if (second > second_) second_ = second;  // a longer pause: every bucket has been cleared above
  }

  std::array<std::uint64_t, kBuckets> buckets_{};
  std::uint64_t second_ = 0;
};

}  // namespace stoker
