// Random numbers of the emulation: repeatable from the seed, and cheap enough to draw one per barrier.
#pragma once

#include <cstdint>

namespace stoker::emulation {

/// SplitMix64 (https://prng.di.unimi.it/splitmix64.c).
class Random {
 public:
  explicit Random(std::uint64_t seed = 0) : state_(seed) {}

  std::uint32_t next() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15U);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return static_cast<std::uint32_t>((z ^ z >> 31) >> 32);
  }

  /// Less than `end`, which is not 0.
  std::uint32_t below(std::uint32_t end) {
    return static_cast<std::uint32_t>(std::uint64_t{next()} * end >> 32);
  }

 private:
  std::uint64_t state_;
};

}  // namespace stoker::emulation
