// Where an expert that is in the pool, but not in device memory, is computed: on the CPU straight from its
// slot, or on the GPU after a copy. Both lanes work at the same time and give the same bits, so the choice is
// only about time.
#pragma once

#include <cstdint>

namespace stoker {

enum class Lane : std::uint8_t { automatic, gpu, cpu };

/// Splits the experts of one layer by the rates of the two lanes (caching.md 4): each goes where it would be
/// done first.
class LaneSplit {
 public:
  /// Bytes of expert weights per second.
  LaneSplit(double cpu, double copy) : cpu_(cpu), copy_(copy) {}
  void begin_layer() { cpu_done_ = copy_done_ = 0; }
  /// `rows` use it: the CPU computes each of them, a copy is made once.
  Lane choose(double bytes, std::uint32_t rows) {
    const double by_cpu = cpu_done_ + bytes / cpu_ * (1.0 + (rows - 1) * kCpuMoreRows);
    const double by_copy = copy_done_ + bytes / copy_;
    if (by_cpu < by_copy) {
      cpu_done_ = by_cpu;
      return Lane::cpu;
    }
    copy_done_ = by_copy;
    return Lane::gpu;
  }
  [[nodiscard]] double cpu() const { return cpu_; }
  [[nodiscard]] double copy() const { return copy_; }

 private:
  /// A further row of x costs this much of the first: weights are decoded once, products are not.
  static constexpr double kCpuMoreRows = 0.7;
  double cpu_, copy_;
  double cpu_done_ = 0, copy_done_ = 0;
};

}  // namespace stoker
