#include <catch2/catch.hpp>
#include <limits>
#include <random>

#include "daemons/common/limits.h"
#include "daemons/common/messages.h"

using namespace stoker;

namespace {

wire::ClientMessage generate() {
  wire::ClientMessage message;
  message.mutable_generate()->set_id("r1");
  message.mutable_generate()->set_prompt("hello");
  return message;
}

bool refused(const wire::ClientMessage& message, const std::string& names) {
  const auto parsed = parse_client(encode(message));
  REQUIRE(parsed.has_value());
  const auto valid = validate(*parsed);
  if (valid) return false;
  INFO(valid.error().message);
  CHECK(valid.error().message.find(names) != std::string::npos);
  return true;
}

wire::RoutingSample sample() {
  wire::RoutingSample s;
  s.set_layers(48);
  s.set_experts(512);
  s.set_process(2);
  s.set_step(7);
  s.set_layer(3);
  for (std::uint32_t e : {4U, 9U}) {
    s.add_chosen(e);
    s.add_weights(0.5F);
    s.add_tiers(1);
  }
  s.set_lookahead_layer(4);
  s.add_lookahead(11);
  s.add_lookahead_scores(0.25F);
  s.mutable_times()->set_done(1.5F);
  return s;
}

}  // namespace

TEST_CASE("messages survive the wire") {
  wire::ClientMessage message = generate();
  message.mutable_generate()->mutable_sampling()->set_seed(0xFFFFFFFFFFFFFFFFULL);
  message.mutable_generate()->add_stop("\n\n");
  const auto back = parse_client(encode(message));
  REQUIRE(back.has_value());
  CHECK(validate(*back).has_value());
  CHECK(encode(*back) == encode(message));
  CHECK(request_id(*back) == "r1");
  CHECK(encode(*decode_sample(encode(sample()))) == encode(sample()));
  const wire::ServerMessage error = error_message("r1", error_code::kContext, "too long");
  CHECK(decode_server(encode(error))->error().code() == "context_length_exceeded");
}

TEST_CASE("client requests are checked field by field") {
  wire::ClientMessage m = generate();
  CHECK_FALSE(refused(m, ""));
  const auto with = [](auto change) {
    wire::ClientMessage message = generate();
    change(*message.mutable_generate());
    return message;
  };
  using Request = wire::GenerateRequest;
  CHECK(refused(wire::ClientMessage(), "empty"));
  CHECK(refused(with([](Request& r) { r.set_id(""); }), "id"));
  CHECK(refused(with([](Request& r) { r.set_id(std::string(65, 'x')); }), "id"));
  CHECK(refused(with([](Request& r) { r.set_id("a\nb"); }), "id"));
  CHECK(refused(with([](Request& r) { r.clear_prompt(); }), "input"));
  CHECK(refused(with([](Request& r) { r.mutable_tokens()->add_ids(limits::kTokenId); }), "tokens"));
  CHECK(refused(with([](Request& r) { r.add_forced(0xFFFFFFFFU); }), "forced"));
  CHECK(refused(with([](Request& r) { r.set_max_tokens(0xFFFFFFFFU); }), "max_tokens"));
  CHECK(refused(with([](Request& r) { r.add_stop(""); }), "stop"));
  CHECK(refused(with([](Request& r) { r.add_stop(std::string(2000, 'x')); }), "1024"));
  CHECK(refused(with([](Request& r) {
                  for (int i = 0; i < 65; ++i) r.add_stop("x");
                }),
                "stop"));
  CHECK(refused(with([](Request& r) { r.set_logprobs(21); }), "logprobs"));
  CHECK(refused(with([](Request& r) { r.set_all_positions(true); }), "all_positions"));
  CHECK(refused(with([](Request& r) {
                  r.set_score(true);
                  r.set_logits(true);
                }),
                "score"));
  CHECK(refused(with([](Request& r) {
                  r.set_score(true);
                  r.add_forced(1);
                }),
                "score"));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(refused(with([&](Request& r) { r.mutable_sampling()->set_temperature(nan); }), "temperature"));
  CHECK(refused(with([](Request& r) { r.mutable_sampling()->set_temperature(-1); }), "temperature"));
  CHECK(refused(with([](Request& r) { r.mutable_sampling()->set_top_p(1.5F); }), "top_p"));
  CHECK(refused(with([](Request& r) { r.mutable_sampling()->set_min_p(-0.1F); }), "min_p"));
  CHECK(refused(with([](Request& r) { r.mutable_sampling()->set_repetition_penalty(0); }),
                "repetition_penalty"));
}

TEST_CASE("an id that is not acceptable is not echoed") {
  wire::ClientMessage message = generate();
  message.mutable_generate()->set_id("a\x01");
  CHECK(request_id(message).empty());
}

TEST_CASE("samples are checked") {
  const auto refuses = [](auto change) {
    wire::RoutingSample s = sample();
    change(s);
    return !decode_sample(encode(s)).has_value();
  };
  CHECK(decode_sample(encode(sample())).has_value());
  CHECK(refuses([](auto& s) { s.set_layer(limits::kLayers); }));
  CHECK(refuses([](auto& s) { s.set_lookahead_layer(limits::kLayers); }));
  CHECK(refuses([](auto& s) { s.set_layer(48); }));
  CHECK(refuses([](auto& s) { s.set_lookahead_layer(48); }));
  CHECK(refuses([](auto& s) { s.set_chosen(0, 512); }));
  CHECK(refuses([](auto& s) { s.add_routed(512); }));
  CHECK(refuses([](auto& s) { s.set_process(16); }));
  CHECK(refuses([](auto& s) { s.set_layers(limits::kLayers + 1); }));
  CHECK(refuses([](auto& s) {
    s.set_layers(limits::kLayers);
    s.set_experts(limits::kExperts);
  }));
  CHECK(refuses([](auto& s) { s.add_chosen(1); }));
  CHECK(refuses([](auto& s) { s.add_lookahead(1); }));
  CHECK(refuses([](auto& s) { s.set_chosen(0, limits::kExperts); }));
  CHECK(refuses([](auto& s) { s.set_tiers(0, 5); }));
  CHECK(refuses([](auto& s) { s.mutable_times()->set_stalled(-1); }));
  CHECK(refuses([](auto& s) { s.mutable_times()->set_done(std::numeric_limits<float>::quiet_NaN()); }));
  CHECK(refuses([](auto& s) { s.set_weights(0, std::numeric_limits<float>::infinity()); }));
  CHECK(refuses([](auto& s) {
    for (int i = 0; i < 300; ++i) {
      s.add_lookahead(1);
      s.add_lookahead_scores(0);
    }
  }));
}

TEST_CASE("hints are checked") {
  wire::HintBatch batch;
  wire::Hint* hint = batch.add_hints();
  hint->set_layer(1);
  hint->set_expert(2);
  hint->set_confidence(0.5F);
  CHECK(decode_hints(encode(batch)).has_value());
  hint->set_confidence(2);
  CHECK_FALSE(decode_hints(encode(batch)).has_value());
  hint->set_confidence(std::numeric_limits<float>::quiet_NaN());
  CHECK_FALSE(decode_hints(encode(batch)).has_value());
  hint->set_confidence(0.5F);
  batch.set_process(16);
  CHECK_FALSE(decode_hints(encode(batch)).has_value());
  batch.set_process(15);
  hint->set_expert(limits::kExperts);
  CHECK_FALSE(decode_hints(encode(batch)).has_value());
  hint->set_expert(2);
  for (int i = 0; i < limits::kHintsPerBatch; ++i) *batch.add_hints() = *hint;
  CHECK_FALSE(decode_hints(encode(batch)).has_value());
}

TEST_CASE("random and cut bytes are refused or valid, never anything else") {
  std::mt19937 random(42);
  wire::ClientMessage whole = generate();
  whole.mutable_generate()->mutable_sampling()->set_top_p(0.5F);
  const std::string bytes = encode(whole);
  unsigned refusals = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string hostile = bytes.substr(0, random() % (bytes.size() + 1));
    for (unsigned flips = random() % 4; flips > 0 && !hostile.empty(); --flips)
      hostile[random() % hostile.size()] = static_cast<char>(random());
    const auto parsed = parse_client(hostile);
    if (!parsed || !validate(*parsed)) ++refusals;
    (void)decode_sample(hostile);
    (void)decode_hints(hostile);
    (void)decode_server(hostile);
  }
  CHECK(refusals > 500);
  CHECK_FALSE(parse_client(std::string(limits::kClientMessageBytes + 1, '\0')).has_value());
  CHECK_FALSE(decode_hints(std::string(limits::kHintBytes + 1, '\0')).has_value());
}
