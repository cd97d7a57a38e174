// Counter-based random numbers: element i of a stream depends on (seed, name, i) only, so threads may fill
// any part of any tensor in any order and the bytes stay the same.
#pragma once

#include <cstdint>
#include <string_view>

namespace stoker {

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
constexpr std::uint64_t mix_bits(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

class RandomStream {
 public:
  constexpr RandomStream(std::uint64_t seed, std::string_view name) : key_(mix_bits(seed + 0x5353)) {
    for (char c : name) key_ = mix_bits(key_ ^ static_cast<unsigned char>(c));
  }
  [[nodiscard]] constexpr std::uint64_t bits(std::uint64_t i) const {
    return mix_bits(key_ + (i + 1) * 0x9E3779B97F4A7C15ULL);
  }
  /// Uniform in [0, 1), 24 bits.
  [[nodiscard]] constexpr float uniform(std::uint64_t i) const {
    return static_cast<float>(bits(i) >> 40) * 0x1p-24F;
  }
  /// Mean 0, variance 1: the sum of four 16-bit uniforms (Irwin-Hall), which ends at +-3.46.
  [[nodiscard]] constexpr float normal(std::uint64_t i) const {
    const std::uint64_t r = bits(i);
    const auto sum =
        static_cast<std::int32_t>((r & 0xFFFF) + ((r >> 16) & 0xFFFF) + ((r >> 32) & 0xFFFF) + (r >> 48));
    return static_cast<float>(sum - 131070) * (1.0F / 37837.2F);
  }

 private:
  std::uint64_t key_;
};

}  // namespace stoker
