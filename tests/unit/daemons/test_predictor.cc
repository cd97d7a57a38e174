#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "daemons/predictor/predictor_core.h"

using namespace stoker;

namespace {

constexpr std::uint32_t kPool = 1, kHinted = 2, kDisk = 3, kLate = 4;

wire::RoutingSample lookahead(std::uint64_t step, std::uint32_t layer, std::vector<std::uint32_t> experts) {
  wire::RoutingSample s;
  s.set_step(step);
  s.set_lookahead_layer(layer);
  for (std::uint32_t e : experts) {
    s.add_lookahead(e);
    s.add_lookahead_scores(0.1F);
  }
  return s;
}

wire::RoutingSample routed(std::uint64_t step, std::uint32_t layer,
                           std::vector<std::pair<std::uint32_t, std::uint32_t>> expert_tier) {
  wire::RoutingSample s;
  s.set_step(step);
  s.set_layer(layer);
  for (const auto& [expert, tier] : expert_tier) {
    s.add_chosen(expert);
    s.add_weights(0.1F);
    s.add_tiers(tier);
  }
  return s;
}

std::vector<std::uint32_t> experts(const std::optional<wire::HintBatch>& batch) {
  std::vector<std::uint32_t> out;
  if (batch)
    for (const wire::Hint& hint : batch->hints()) out.push_back(hint.expert());
  return out;
}

/// `steps` steps whose loader feedback says that `used_percent` of 10 issued hints per step were used.
void run_window(PredictorCore& core, wire::HintFeedback& total, std::uint64_t& step, unsigned steps,
                std::uint64_t used_per_ten) {
  for (unsigned i = 0; i < steps; ++i) {
    wire::RoutingSample s = routed(++step, 0, {{1, kPool}});
    total.set_issued(total.issued() + 10);
    total.set_used(total.used() + used_per_ten);
    *s.mutable_feedback() = total;
    core.on_sample(s);
  }
}

}  // namespace

TEST_CASE("the best candidates become hints with deadline and confidence") {
  PredictorCore core({.width_max = 16, .width_start = 3});
  const auto batch = core.on_sample(lookahead(7, 4, {9, 8, 7, 6}));
  REQUIRE(batch.has_value());
  CHECK(experts(batch) == std::vector<std::uint32_t>{9, 8, 7});
  CHECK(batch->step() == 7);
  CHECK(batch->deadline_layer() == 4);
  CHECK(batch->hints(0).layer() == 4);
  CHECK(batch->hints(0).confidence() == Approx(0.1));
}

TEST_CASE("an expert is hinted once per layer and step, again in the next step") {
  PredictorCore core({});
  CHECK(experts(core.on_sample(lookahead(1, 2, {5, 6}))) == std::vector<std::uint32_t>{5, 6});
  CHECK(experts(core.on_sample(lookahead(1, 2, {6, 7}))) ==
        std::vector<std::uint32_t>{7});                                                   // another sequence
  CHECK(experts(core.on_sample(lookahead(1, 3, {6}))) == std::vector<std::uint32_t>{6});  // another layer
  CHECK_FALSE(core.on_sample(lookahead(1, 2, {5})).has_value());
  CHECK(experts(core.on_sample(lookahead(2, 2, {5}))) == std::vector<std::uint32_t>{5});
}

TEST_CASE("candidates without confidence are not hinted, and scores above one are tamed") {
  PredictorCore core({.confidence_min = 0.01F});
  wire::RoutingSample s = lookahead(1, 2, {5, 6});
  s.set_lookahead_scores(0, 7.0F);
  s.set_lookahead_scores(1, 0.001F);
  const auto batch = core.on_sample(s);
  CHECK(experts(batch) == std::vector<std::uint32_t>{5});
  CHECK(batch->hints(0).confidence() == 1.0F);
}

TEST_CASE("a look-ahead for a layer that was routed already is too late") {
  PredictorCore core({});
  core.on_sample(routed(1, 2, {{5, kPool}}));
  CHECK_FALSE(core.on_sample(lookahead(1, 2, {5})).has_value());
  CHECK(core.score().expired == 1);
  CHECK(core.score().hinted == 0);
}

TEST_CASE("the score tells precision from recall on cold experts") {
  PredictorCore core({});
  core.on_sample(lookahead(1, 2, {1, 2, 3, 4}));
  // 1 was resident, 2 came in time, 3 was late; 4 was wrong; 8 nobody guessed.
  core.on_sample(routed(1, 2, {{1, kPool}, {2, kHinted}, {3, kLate}, {8, kDisk}}));
  const PredictorScore score = core.score();
  CHECK(score.hinted == 4);
  CHECK(score.right == 3);
  CHECK(score.precision() == Approx(0.75));
  CHECK(score.chosen == 4);
  CHECK(score.cold == 3);
  CHECK(score.cold_served == 1);
  CHECK(score.cold_late == 1);
  CHECK(score.cold_dropped == 0);
  CHECK(score.cold_recall() == Approx(1.0 / 3));
  core.on_sample(lookahead(2, 2, {9}));
  core.on_sample(routed(2, 2, {{9, kDisk}}));
  CHECK(core.score().cold_dropped == 1);
  CHECK(core.layer_scores().at(2).hinted == 5);
}

TEST_CASE("one hint that two sequences use counts once, and unpredicted layers not at all") {
  PredictorCore core({});
  core.on_sample(lookahead(1, 2, {1}));
  core.on_sample(routed(1, 2, {{1, kHinted}}));
  core.on_sample(routed(1, 2, {{1, kHinted}}));
  CHECK(core.score().right == 1);
  CHECK(core.score().precision() == Approx(1.0));
  core.on_sample(routed(1, 0, {{1, kDisk}}));
  CHECK(core.score().chosen == 2);
}

TEST_CASE("wasted reads make it retreat, down to a pause, and then probe again") {
  PredictorCore core({.width_max = 16, .width_start = 8, .window_steps = 10});
  wire::HintFeedback total;
  std::uint64_t step = 0;
  run_window(core, total, step, 11, 1);  // 10 % used; the first feedback only opens the window
  CHECK(core.width() == 4);
  run_window(core, total, step, 30, 1);
  CHECK(core.width() == 0);
  CHECK_FALSE(core.on_sample(lookahead(step, 5, {1, 2})).has_value());
  run_window(core, total, step, 10, 1);
  CHECK(core.width() == 1);
  CHECK(experts(core.on_sample(lookahead(step, 6, {1, 2}))) == std::vector<std::uint32_t>{1});
}

TEST_CASE("useful reads make it bolder, up to the limit; middling ones leave it alone") {
  PredictorCore core({.width_max = 10, .width_start = 8, .window_steps = 10});
  wire::HintFeedback total;
  std::uint64_t step = 0;
  run_window(core, total, step, 11, 9);
  CHECK(core.width() == 9);
  run_window(core, total, step, 10, 5);
  CHECK(core.width() == 9);
  run_window(core, total, step, 50, 10);
  CHECK(core.width() == 10);
}

TEST_CASE("a new pool's counters do not look like success or failure") {
  PredictorCore core({.width_max = 16, .width_start = 8, .window_steps = 10});
  wire::HintFeedback total;
  std::uint64_t step = 0;
  run_window(core, total, step, 8, 9);
  total = {};  // the loader came back with a fresh pool
  run_window(core, total, step, 5, 0);
  CHECK(core.width() == 8);
}

TEST_CASE("the report is JSON") {
  PredictorCore core({});
  core.on_sample(lookahead(1, 2, {1}));
  const auto report = nlohmann::json::parse(core.json());
  CHECK(report["hinted"] == 1);
  CHECK(report["layers"]["2"]["samples"] == 1);
  CHECK(report["width"] == 8);
}
