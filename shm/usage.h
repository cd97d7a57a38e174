// How an expert has been used: the packed word ExpertEntry::usage. What follows from it:
// io-worker/residency.h.
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

/// Division by the age forgets already; this only bounds the sum. On the 512-expert trace .98 costs 1.2
/// points of hit rate at 170 and 195 slots per layer, .999 nothing (docs/residency.md).
inline constexpr float kUsageDecay = 0.999F;

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

/// kUsageDecay ^ steps by squaring; 0 where a float has nothing left of it (.999^65536 = 3e-29).
constexpr float usage_decay(std::uint32_t steps) {
  if (steps >= 65536) return 0.0F;
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

/// Counts a use in shared memory. Statistics only: of two simultaneous uses one may be lost.
inline void record_use(std::atomic<std::uint64_t>& usage, std::uint32_t step) {
  usage.store(touch(usage.load(std::memory_order_relaxed), step), std::memory_order_relaxed);
}

static_assert(unpack_usage(pack_usage({2.5F, 7})).frequency == 2.5F &&
              unpack_usage(pack_usage({2.5F, 7})).step == 7);
static_assert(unpack_usage(touch(0, 5)).frequency == 1.0F);

}  // namespace stoker
