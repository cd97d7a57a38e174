// How an expert has been used: the packed word ExpertEntry::usage, and the score residency goes by.
//
//   bits 63..32  frequency  float, uses counted with exponential decay (kUsageDecay per step)
//   bits 31..0   step       low 32 bits of the pool's step counter at the last use
//
// Pure functions of (word, step); the daemon, the simulator and the trace replay tool share them.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>

namespace stoker {

/// caching.md 1.3: .90-.98 per token is the plateau; longer memory loses at a change of prompt.
inline constexpr float kUsageDecay = 0.98F;

struct Usage {
  float frequency = 0.0F;
  std::uint32_t step = 0;
};

constexpr std::uint64_t pack_usage(Usage u) {
  return (std::uint64_t{std::bit_cast<std::uint32_t>(u.frequency)} << 32) | u.step;
}

/// The word comes from shared memory: a frequency that cannot be (negative, infinite, NaN) reads as 0.
/// The largest possible one is the sum of the decay's powers, 1 / (1 - kUsageDecay), per use in a step.
constexpr Usage unpack_usage(std::uint64_t bits) {
  const auto frequency = std::bit_cast<float>(static_cast<std::uint32_t>(bits >> 32));
  const bool plausible = frequency >= 0.0F && frequency <= 1e9F;  // false for NaN
  return {.frequency = plausible ? frequency : 0.0F, .step = static_cast<std::uint32_t>(bits)};
}

/// Steps from `last` to `now`. Several workers advance the counter, so `last` may be a little ahead: 0.
constexpr std::uint32_t usage_age(std::uint32_t last, std::uint32_t now) {
  const std::uint32_t age = now - last;  // wraps with the counter
  return age < 0x8000'0000U ? age : 0;
}

/// kUsageDecay ^ steps by squaring; 0 where a float has nothing left of it (.98^4096 = 1e-36).
constexpr float usage_decay(std::uint32_t steps) {
  if (steps >= 4096) return 0.0F;
  float result = 1.0F, power = kUsageDecay;
  for (; steps != 0; steps >>= 1U, power *= power)
    if ((steps & 1U) != 0) result *= power;
  return result;
}

/// The word after one more use at `step`.
constexpr std::uint64_t touch(std::uint64_t usage, std::uint32_t step) {
  const Usage u = unpack_usage(usage);
  return pack_usage({.frequency = u.frequency * usage_decay(usage_age(u.step, step)) + 1.0F, .step = step});
}

/// LFRU (caching.md 7.1): decayed frequency / (age + 1). Higher = keep longer; never used = 0.
constexpr float score(std::uint64_t usage, std::uint32_t now_step) {
  const Usage u = unpack_usage(usage);
  const std::uint32_t age = usage_age(u.step, now_step);
  return u.frequency * usage_decay(age) / (static_cast<float>(age) + 1.0F);
}

/// Counts a use in shared memory. Statistics only: of two simultaneous uses one may be lost.
inline void record_use(std::atomic<std::uint64_t>& usage, std::uint32_t step) {
  usage.store(touch(usage.load(std::memory_order_relaxed), step), std::memory_order_relaxed);
}

static_assert(unpack_usage(pack_usage({2.5F, 7})).frequency == 2.5F &&
              unpack_usage(pack_usage({2.5F, 7})).step == 7);
static_assert(unpack_usage(touch(0, 5)).frequency == 1.0F);
static_assert(score(touch(0, 5), 5) == 1.0F && score(0, 5) == 0.0F);

}  // namespace stoker
