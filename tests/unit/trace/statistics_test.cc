#include <catch2/catch.hpp>
#include <cmath>

#include "trace/statistics.h"

using namespace stoker;

namespace {

Trace trace_of(std::uint32_t experts, std::uint32_t candidates,
               const std::vector<std::vector<std::uint16_t>>& chosen) {
  Trace trace;
  trace.shape = {.layers = 1,
                 .experts = experts,
                 .top_k = static_cast<std::uint32_t>(chosen.front().size()),
                 .candidates = candidates,
                 .expert_bytes = 1};
  for (const auto& ids : chosen) {
    TraceToken token = TraceToken::sized(trace.shape);
    token.chosen = ids;
    trace.tokens.push_back(token);
  }
  return trace;
}

}  // namespace

TEST_CASE("entropy and shares: even use, and one favourite") {
  const auto even = layer_statistics(trace_of(4, 0, {{0, 1}, {2, 3}, {0, 1}, {2, 3}})).front();
  CHECK(even.entropy_bits == Approx(2));
  CHECK(even.experts_used == 4);
  CHECK(even.top10 == Approx(0.25));  // one expert, rounded up
  CHECK(even.top25 == Approx(0.25));
  CHECK(even.top50 == Approx(0.5));
  // Uses 3, 2, 1 of 6.
  const auto skewed = layer_statistics(trace_of(4, 0, {{0, 1}, {0, 1}, {0, 2}})).front();
  CHECK(skewed.entropy_bits == Approx(0.5 * 1 + std::log2(3.0) / 3 + std::log2(6.0) / 6));
  CHECK(skewed.experts_used == 3);
  CHECK(skewed.top25 == Approx(0.5));
  CHECK(skewed.top50 == Approx(5.0 / 6));
}

TEST_CASE("overlap counts neighbours of the same sequence only") {
  Trace trace = trace_of(8, 0, {{0, 1}, {4, 5}, {1, 2}, {4, 5}});
  trace.tokens[1].sequence = trace.tokens[3].sequence = 1;
  CHECK(layer_statistics(trace).front().overlap == Approx((0.5 + 1.0) / 2));
  CHECK(std::isnan(layer_statistics(trace_of(8, 0, {{0, 1}})).front().overlap));
}

TEST_CASE("look-ahead recall at k, 2k and all; nothing where nothing was guessed") {
  Trace trace = trace_of(16, 6, {{3, 9}, {3, 9}, {3, 9}});
  trace.tokens[0].candidates = {3, 1, 9, 2, 4, 5};
  trace.tokens[1].candidates = {1, 2, 4, 5, 3, 9};
  const auto layer = layer_statistics(trace).front();  // the third has no candidates
  CHECK(layer.recall_k == Approx((0.5 + 0.0) / 2));
  CHECK(layer.recall_2k == Approx((1.0 + 0.0) / 2));
  CHECK(layer.recall_all == Approx(1.0));
  // Fewer candidates than 2k: that figure does not exist.
  trace.tokens[0].candidates = trace.tokens[1].candidates = {3, 1, 9, kNoExpert, kNoExpert, kNoExpert};
  const auto fewer = layer_statistics(trace).front();
  CHECK(fewer.recall_k == Approx(0.5));
  CHECK(std::isnan(fewer.recall_2k));
  CHECK(fewer.recall_all == Approx(1.0));
}

TEST_CASE("uses by tier, where the trace knows them") {
  Trace trace = trace_of(8, 0, {{0, 1}, {2, 3}, {4, 5}});
  trace.tokens[0].tiers = {0, 1};
  trace.tokens[1].tiers = {2, 3};
  trace.tokens[2].tiers = {4, 1};
  CHECK(tier_uses(trace).all() == 0);
  trace.tiers_known = true;
  const TierUses uses = tier_uses(trace);
  CHECK((uses.pool == 3 && uses.hinted == 1 && uses.disk == 2));
}

TEST_CASE("the mean leaves out layers without a figure") {
  std::vector<LayerStatistics> layers(2);
  layers[0].recall_k = std::nan("");
  layers[1].recall_k = 0.5;
  layers[0].top10 = 0.2;
  layers[1].top10 = 0.4;
  CHECK(mean_of(layers).recall_k == Approx(0.5));
  CHECK(mean_of(layers).top10 == Approx(0.3));
}
