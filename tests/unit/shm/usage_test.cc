// Usage words: decay, hostile values, wrap-around of the step counter.
#include "shm/usage.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

using namespace stoker;

TEST_CASE("frequency decays by .999 per step and each use adds one") {
  std::uint64_t usage = 0;
  usage = touch(usage, 10);
  usage = touch(usage, 10);
  CHECK(unpack_usage(usage).frequency == 2.0F);
  usage = touch(usage, 13);
  CHECK(unpack_usage(usage).frequency == Approx(2.0 * std::pow(0.999, 3) + 1.0));
  CHECK(unpack_usage(usage).step == 13);
}

TEST_CASE("decay by squaring equals the power, and ends at zero") {
  for (const std::uint32_t steps : {0U, 1U, 2U, 3U, 7U, 64U, 100U, 1000U, 4095U, 65535U})
    CHECK(usage_decay(steps) == Approx(std::pow(0.999, steps)).epsilon(2e-3));
  CHECK(usage_decay(65536) == 0.0F);
  CHECK(usage_decay(0xFFFFFFFFU) == 0.0F);
}

TEST_CASE("the step counter may wrap, and another worker may be ahead") {
  CHECK(usage_age(0xFFFFFFFEU, 1) == 3);
  CHECK(usage_age(10, 8) == 0);
  CHECK(unpack_usage(touch(pack_usage({1.0F, 10}), 8)).frequency == 2.0F);
}

TEST_CASE("hostile frequencies read as never used") {
  using Limits = std::numeric_limits<float>;
  for (const float bad : {-1.0F, Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN(), 1e30F}) {
    CHECK(unpack_usage(pack_usage({.frequency = bad, .step = 1})).frequency == 0.0F);
    CHECK(unpack_usage(touch(pack_usage({.frequency = bad, .step = 1}), 1)).frequency == 1.0F);
  }
}
