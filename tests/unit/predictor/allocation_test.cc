#include <array>
#include <catch2/catch.hpp>
#include <random>

#include "predictor/predictor_core.h"
#include "tests/unit/model/count_allocations.h"

using namespace stoker;

TEST_CASE("after reshape nothing is allocated, whatever comes") {
  PredictorCore core({.horizon = 3, .token_table_bytes = 1 << 16, .cross_layer = true, .restraint = {}});
  core.reshape({.layers = 6, .experts = 64});
  std::mt19937 engine(1);
  std::array<std::uint16_t, 4> chosen{};
  std::array<std::uint16_t, 16> candidates{};
  const std::array<std::uint8_t, 4> tiers{1, 2, 3, 4};
  const auto draw = [&](auto& ids) {
    for (std::uint16_t& id : ids) id = static_cast<std::uint16_t>(engine() % 64);
  };
  testing::start_counting_allocations();
  std::size_t guesses = 0;
  for (std::uint64_t step = 1; step <= 500; ++step) {
    // More sequences than are remembered, more tokens than the table holds.
    const RowKey row{.process = static_cast<std::uint32_t>(engine() % 3),
                     .sequence = static_cast<std::uint32_t>(engine() % 100),
                     .step = step,
                     .token = static_cast<std::uint32_t>(engine() % 50)};
    guesses += core.on_token(row).size();
    for (std::uint32_t layer = 0; layer < 6; ++layer) {
      draw(chosen);
      draw(candidates);
      guesses += core.on_lookahead(row, layer, chosen, candidates).size();
      core.on_routing(row, layer, chosen, tiers);
    }
    core.on_feedback(row, {.issued = step, .used = step, .now_ns = step * 1000});
  }
  CHECK(testing::stop_counting_allocations() == 0);
  CHECK(guesses > 0);
}
