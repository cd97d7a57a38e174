#include <catch2/catch.hpp>

#include "cli/trace_recorder.h"

using namespace stoker;
using stoker::cli::TraceAssembler;

namespace {

const TraceShape kShape{.layers = 3, .experts = 8, .top_k = 2, .candidates = 4, .expert_bytes = 1};

wire::RoutingSample routing(std::uint64_t step, std::uint32_t layer, std::uint32_t sequence = 1) {
  wire::RoutingSample sample;
  sample.set_step(step);
  sample.set_layer(layer);
  sample.set_sequence(sequence);
  sample.set_token(42);
  for (std::uint32_t i = 0; i < 2; ++i) {
    sample.add_chosen(layer * 2 + i);
    sample.add_weights(0.5F);
    sample.add_tiers(1);
  }
  return sample;
}

wire::RoutingSample lookahead(std::uint64_t step, std::uint32_t layer, std::uint32_t sequence = 1) {
  wire::RoutingSample sample;
  sample.set_step(step);
  sample.set_sequence(sequence);
  sample.set_token(42);
  sample.set_lookahead_layer(layer);
  for (const std::uint32_t expert : {7U, 6U}) {
    sample.add_lookahead(expert);
    sample.add_lookahead_scores(0.1F);
  }
  return sample;
}

}  // namespace

TEST_CASE("a token is whole when all its layers are there") {
  TraceAssembler assembler(kShape);
  CHECK(assembler.add(lookahead(5, 1)) == nullptr);
  CHECK(assembler.add(routing(5, 0)) == nullptr);
  CHECK(assembler.add(lookahead(5, 2)) == nullptr);
  CHECK(assembler.add(routing(5, 1)) == nullptr);
  const TraceToken* token = assembler.add(routing(5, 2));
  REQUIRE(token != nullptr);
  CHECK((token->step == 5 && token->sequence == 1 && token->token == 42));
  CHECK(token->chosen == std::vector<std::uint16_t>{0, 1, 2, 3, 4, 5});
  CHECK(token->candidates == std::vector<std::uint16_t>{kNoExpert, kNoExpert, kNoExpert, kNoExpert,  //
                                                        7, 6, kNoExpert, kNoExpert,                  //
                                                        7, 6, kNoExpert, kNoExpert});
  CHECK(assembler.incomplete() == 0);
}

TEST_CASE("tokens of several sequences in one step; a lost layer loses its token only") {
  TraceAssembler assembler(kShape);
  for (std::uint32_t layer = 0; layer < 3; ++layer) {
    const bool last = layer == 2;
    CHECK((assembler.add(routing(5, layer, 1)) != nullptr) == last);
    if (layer != 1) CHECK(assembler.add(routing(5, layer, 2)) == nullptr);  // layer 1 was dropped
  }
  CHECK(assembler.incomplete() == 0);  // it might still come
  for (std::uint32_t layer = 0; layer < 3; ++layer) assembler.add(routing(20, layer));
  CHECK(assembler.incomplete() == 1);
}

TEST_CASE("times are taken where they come; a worker that sends none gives none") {
  TraceAssembler assembler(kShape);
  for (std::uint32_t layer = 0; layer < 3; ++layer) {
    wire::RoutingSample sample = routing(5, layer);
    sample.mutable_times()->set_demanded(1 + 10.0F * static_cast<float>(layer));
    sample.mutable_times()->set_done(9 + 10.0F * static_cast<float>(layer));
    const TraceToken* token = assembler.add(sample);
    if (layer < 2) continue;
    REQUIRE(token != nullptr);
    CHECK(token->times == std::vector<LayerTimes>{{1, 0, 0, 9}, {11, 0, 0, 19}, {21, 0, 0, 29}});
  }
  for (std::uint32_t layer = 0; layer < 2; ++layer) assembler.add(routing(6, layer));
  CHECK(assembler.add(routing(6, 2))->times.empty());
}

TEST_CASE("samples of another model are not taken") {
  TraceAssembler assembler(kShape);
  wire::RoutingSample wide = routing(1, 0);
  wide.add_chosen(7);
  wide.add_weights(0.1F);
  wide.add_tiers(1);
  CHECK(assembler.add(wide) == nullptr);
  wire::RoutingSample far = routing(1, 0);
  far.set_chosen(0, 8);
  CHECK(assembler.add(far) == nullptr);
  CHECK(assembler.add(routing(1, 3)) == nullptr);
}
