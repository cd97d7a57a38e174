#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>
#include <numeric>

#include "daemons/predictor/sample_reader.h"

using namespace stoker;

namespace {

constexpr std::uint32_t kLayers = 6, kExperts = 32;

wire::RoutingSample sample(std::uint32_t process, std::uint64_t step, std::uint32_t token) {
  wire::RoutingSample s;
  s.set_layers(kLayers);
  s.set_experts(kExperts);
  s.set_process(process);
  s.set_step(step);
  s.set_token(token);
  return s;
}

wire::RoutingSample lookahead(std::uint32_t process, std::uint64_t step, std::uint32_t layer,
                              const std::vector<std::uint32_t>& candidates) {
  wire::RoutingSample s = sample(process, step, 7);
  s.set_lookahead_layer(layer);
  for (const std::uint32_t e : {1U, 2U}) s.add_routed(e);
  for (const std::uint32_t e : candidates) {
    s.add_lookahead(e);
    s.add_lookahead_scores(0.1F);
  }
  return s;
}

wire::RoutingSample routed(std::uint32_t process, std::uint64_t step, std::uint32_t layer,
                           const std::vector<std::uint32_t>& chosen) {
  wire::RoutingSample s = sample(process, step, 7);
  s.set_layer(layer);
  for (const std::uint32_t e : chosen) {
    s.add_chosen(e);
    s.add_weights(0.1F);
    s.add_tiers(3);
  }
  return s;
}

bool hints(const wire::HintBatch* batch, std::uint32_t layer, std::uint32_t expert) {
  if (batch == nullptr) return false;
  return std::any_of(batch->hints().begin(), batch->hints().end(), [&](const wire::Hint& hint) {
    return hint.layer() == layer && hint.expert() == expert;
  });
}

}  // namespace

TEST_CASE("a look-ahead's best candidates become hints that name worker, step and layer") {
  SampleReader reader({});
  const wire::HintBatch* batch = reader.on_sample(lookahead(3, 70, 4, {9, 8}));
  REQUIRE(batch != nullptr);
  CHECK(batch->process() == 3);
  CHECK(batch->step() == 70);
  CHECK(batch->reads_max() == 16);
  CHECK(hints(batch, 4, 9));
  CHECK(batch->hints(0).confidence() >= batch->hints(batch->hints_size() - 1).confidence());
}

TEST_CASE("two workers do not disturb each other") {
  SampleReader reader({});
  CHECK(hints(reader.on_sample(lookahead(0, 5, 4, {9})), 4, 9));
  CHECK(hints(reader.on_sample(lookahead(1, 900, 4, {9})), 4, 9));
  CHECK_FALSE(hints(reader.on_sample(lookahead(0, 5, 4, {9})), 4, 9));  // said already in this step
  CHECK(hints(reader.on_sample(lookahead(0, 6, 4, {9})), 4, 9));
  reader.on_sample(routed(0, 6, 4, {9}));
  CHECK(reader.core().near_scores()[4].right == 1);
}

TEST_CASE("a token that was seen before says what it wants before its step runs") {
  SampleReader reader({.horizon = 4, .restraint = {}});
  for (std::uint64_t step = 1; step <= 12; ++step)
    for (std::uint32_t layer = 0; layer < kLayers; ++layer)
      reader.on_sample(routed(0, step, layer, {layer + 3, layer + 9}));
  wire::RoutingSample begins = sample(0, 13, 7);
  begins.set_begins(true);
  const wire::HintBatch* batch = reader.on_sample(begins);
  CHECK(hints(batch, 0, 3));
  CHECK(hints(batch, 3, 12));
  begins.set_step(14);
  begins.set_token(8);
  CHECK_FALSE(hints(reader.on_sample(begins), 0, 3));  // another token
}

TEST_CASE("samples of a worker that does not say its shape are ignored") {
  SampleReader reader({});
  wire::RoutingSample s = lookahead(0, 1, 2, {1});
  s.set_layers(0);
  CHECK(reader.on_sample(s) == nullptr);
}

TEST_CASE("the report is JSON and tells state, use and recall") {
  SampleReader reader({});
  reader.on_sample(lookahead(0, 1, 2, {1, 5}));
  reader.on_sample(routed(0, 1, 2, {1, 30}));
  const auto report = nlohmann::json::parse(reader.json());
  CHECK(report["state"] == "probing");
  CHECK(report["issued"] == 0);
  CHECK(report["near"]["cold"] == 2);
  CHECK(report["near"]["cold_recall_10"] == 0.5);
  CHECK(report["layers"]["2"]["near"]["rows"] == 1);
}
