#include <array>
#include <catch2/catch.hpp>
#include <random>

#include "predictor/blend.h"
#include "predictor/token_table.h"
#include "predictor/top_row.h"

using namespace stoker;

TEST_CASE("a row keeps what is frequent, in bounded space, and forgets") {
  TopRow<4> row;
  std::mt19937 engine(1);
  for (int i = 0; i < 200; ++i) {
    const std::array<std::uint16_t, 2> seen{7, static_cast<std::uint16_t>(100 + engine() % 400)};
    row.add(seen);
  }
  const auto count = [&](std::uint16_t expert) {
    for (const auto& e : row.entries())
      if (e.count > 0 && e.expert == expert) return static_cast<int>(e.count);
    return 0;
  };
  CHECK(count(7) > 150);
  for (int i = 0; i < 2000; ++i) row.add(std::array<std::uint16_t, 1>{9});
  CHECK(count(7) < 10);
  CHECK(count(9) > 100);
}

TEST_CASE("the token table is a bounded cache of ids") {
  TokenTable table;
  table.resize(3, 3 * sizeof(TokenTable::Row) * 64);
  const std::array<std::uint16_t, 2> seen{1, 2};
  for (std::uint32_t token = 0; token < 1000; ++token) {
    table.at(token, 0).add(seen);
    table.at(5, 1).add(seen);
  }
  REQUIRE(table.find(5, 1) != nullptr);
  CHECK(table.find(5, 1)->uses() == 256 / 2 + (1000 - 256) % 128);
  CHECK(table.find(999, 0) != nullptr);
  std::size_t known = 0;
  for (std::uint32_t token = 0; token < 1000; ++token) known += table.find(token, 0) != nullptr ? 1U : 0U;
  CHECK(known <= 64);
  CHECK(table.find(999, 2)->uses() == 0);  // rows of a new id are empty
}

TEST_CASE("the blend learns which sources to believe, layer by layer") {
  Blend blend(2, 10, true);
  std::mt19937 engine(2);
  for (int i = 0; i < 4000; ++i) {
    const bool chosen = engine() % 2 == 0;
    // Layer 0: the token table is right and ranks are noise; layer 1 the other way round.
    Features f{.token = chosen ? 2.0F : 0.0F, .rank = static_cast<std::uint8_t>(engine() % 16)};
    blend.learn(0, f, chosen);
    f = {.token = engine() % 2 == 0 ? 2.0F : 0.0F, .rank = static_cast<std::uint8_t>(chosen ? 0 : 12)};
    blend.learn(1, f, chosen);
  }
  CHECK(blend.probability(0, {.token = 2.0F, .rank = 12}) > 0.8F);
  CHECK(blend.probability(0, {.token = 0.0F, .rank = 0}) < 0.3F);
  CHECK(blend.probability(1, {.token = 0.0F, .rank = 0}) > 0.8F);
  CHECK(blend.probability(1, {.token = 2.0F, .rank = 12}) < 0.3F);
}
