// The predictor and a pool in a closed loop, on routing that is predictable or is not.
#include <algorithm>
#include <catch2/catch.hpp>
#include <random>

#include "trace/score.h"

using namespace stoker;

namespace {

constexpr TraceShape kShape{.layers = 8, .experts = 64, .top_k = 4, .candidates = 12, .expert_bytes = 1};

/// Choices are drawn anew for every token; with `coupled`, the look-ahead sees three of four, else it is
/// noise that is just as sure of itself.
void append(Trace& trace, unsigned tokens, bool coupled, std::mt19937& engine) {
  for (unsigned t = 0; t < tokens; ++t) {
    TraceToken token = TraceToken::sized(kShape);
    token.step = trace.tokens.size();
    token.token = static_cast<std::uint32_t>(engine());  // never the same: the token table has nothing to say
    for (std::uint32_t layer = 0; layer < kShape.layers; ++layer) {
      std::vector<std::uint16_t> ids(kShape.experts);
      for (std::uint32_t e = 0; e < kShape.experts; ++e) ids[e] = static_cast<std::uint16_t>(e);
      std::shuffle(ids.begin(), ids.end(), engine);
      std::copy_n(ids.begin(), 4, token.chosen.begin() + std::ptrdiff_t{layer} * 4);
      if (layer == 0) continue;
      auto ahead = token.candidates.begin() + std::ptrdiff_t{layer} * 12;
      if (coupled) {
        std::copy_n(ids.begin() + 1, 12, ahead);
      } else {
        std::shuffle(ids.begin(), ids.end(), engine);
        std::copy_n(ids.begin(), 12, ahead);
      }
    }
    trace.tokens.push_back(std::move(token));
  }
}

ScoreResult play(const Trace& trace, std::size_t skip, bool hints = true) {
  return score(trace, {.slots = 16 * kShape.layers, .skip = skip, .hints = hints, .predictor = {}});
}

}  // namespace

TEST_CASE("planted coupling: most misses are foreseen and hints pay") {
  for (const std::uint32_t seed : {1U, 2U, 3U}) {
    std::mt19937 engine(seed);
    Trace trace{.shape = kShape, .tokens = {}};
    append(trace, 600, true, engine);
    const ScoreResult on = play(trace, 300), off = play(trace, 300, false);
    CHECK(on.near.cold_found[0] > on.near.cold * 6 / 10);
    CHECK(on.demand_reads < off.demand_reads * 55 / 100);
    CHECK(on.used * 10 > on.issued * 8);
    CHECK(on.steps_retreated == 0);
    CHECK(off.issued == 0);
  }
}

TEST_CASE("random routing: within 192 steps next to nothing is read for hints; coupling brings them back") {
  for (const std::uint32_t seed : {1U, 2U, 3U}) {
    std::mt19937 engine(seed);
    Trace trace{.shape = kShape, .tokens = {}};
    append(trace, 600, false, engine);
    const ScoreResult lost = play(trace, 192);
    CHECK(lost.issued * 50 < lost.demand_reads);
    append(trace, 4000, true, engine);
    const ScoreResult back = play(trace, 4300);
    CHECK(back.used * 10 > back.issued * 8);
    CHECK(back.issued > 300 * kShape.layers);
    CHECK(back.steps_retreated == 0);
  }
}

TEST_CASE("without hints the score's pool is the replay's") {
  std::mt19937 engine(4);
  Trace trace{.shape = kShape, .tokens = {}};
  append(trace, 300, true, engine);
  const ScoreResult off = play(trace, 0, false);
  CHECK(off.uses == 300ULL * kShape.layers * kShape.top_k);
  // 16 of 64 experts at random: a quarter is found.
  CHECK(static_cast<double>(off.demand_reads) / static_cast<double>(off.uses) == Approx(0.75).margin(0.05));
}
