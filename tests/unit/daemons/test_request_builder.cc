#include <catch2/catch.hpp>

#include "daemons/worker/request_builder.h"

using namespace stoker;

namespace {

TextTools with_text(GenerationConfig defaults = {}) {
  auto tools = TextTools::load(STOKER_TEXT_DATA, defaults);
  REQUIRE(tools.has_value());
  REQUIRE(tools->tokenizer.has_value());
  REQUIRE(tools->chat_template.has_value());
  return *std::move(tools);
}

const auto kSeed = [] { return std::uint64_t{42}; };

}  // namespace

TEST_CASE("text becomes tokens, token ids stay") {
  const TextTools tools = with_text();
  wire::GenerateRequest wire;
  wire.set_id("r");
  wire.set_prompt("hello world");
  const auto text = build_request(tools, wire, kSeed);
  REQUIRE(text.has_value());
  CHECK(text->prompt == *tools.tokenizer->encode("hello world", AddedTokens::match));
  wire.mutable_tokens()->add_ids(7);
  CHECK(build_request(tools, wire, kSeed)->prompt == std::vector<std::uint32_t>{7});
  wire.set_conversation_json(R"({"messages":[{"role":"user","content":"hi"}]})");
  const auto chat = build_request(tools, wire, kSeed);
  REQUIRE(chat.has_value());
  const auto rendered = tools.chat_template->render(wire.conversation_json(), true);
  CHECK(chat->prompt == *tools.tokenizer->encode(*rendered, AddedTokens::match));
  CHECK(chat->beginning == 0);
  wire.set_conversation_json(
      R"({"messages":[{"role":"system","content":"Be short."},{"role":"user","content":"hi"}]})");
  const auto system = build_request(tools, wire, kSeed);
  REQUIRE(system.has_value());
  const auto beginning = tools.tokenizer->decode(std::span(system->prompt).first(system->beginning), false);
  CHECK(*beginning == "<|im_start|>system\nBe short.<|im_end|>\n");
  wire.set_conversation_json(R"({"messages":[{"role":"user","content":"hi"}]})");
  wire.set_answer_prefix("<tool_call>");
  CHECK(build_request(tools, wire, kSeed)->prompt ==
        *tools.tokenizer->encode(*rendered + "<tool_call>", AddedTokens::match));
  wire.set_conversation_json("{]");
  CHECK(std::string(build_request(tools, wire, kSeed).error().code) == "invalid_request");
}

TEST_CASE("without tokenizer or template the requests that need them say so") {
  TextTools tools;
  tools.tokenizer_problem = "there is no /m/tokenizer.json";
  wire::GenerateRequest wire;
  wire.set_prompt("hello");
  const auto text = build_request(tools, wire, kSeed);
  REQUIRE_FALSE(text.has_value());
  CHECK(std::string(text.error().code) == "no_tokenizer");
  CHECK(text.error().text.find("/m/tokenizer.json") != std::string::npos);
  wire.mutable_tokens()->add_ids(1);
  CHECK(build_request(tools, wire, kSeed).has_value());
  TextTools half = with_text();
  half.chat_template.reset();
  half.template_problem = "unknown family";
  wire.set_conversation_json("{}");
  const auto chat = build_request(half, wire, kSeed);
  REQUIRE_FALSE(chat.has_value());
  CHECK(std::string(chat.error().code) == "no_chat_template");
}

TEST_CASE("the request beats generation_config.json beats greedy") {
  GenerationConfig file;
  file.do_sample = true;
  file.temperature = 0.7F;
  file.top_p = 0.8F;
  file.top_k = 20;
  TextTools tools;
  wire::GenerateRequest wire;
  wire.mutable_tokens()->add_ids(1);
  CHECK(build_request(tools, wire, kSeed)->sampling.temperature == 0);
  tools.defaults = file;
  const SamplingParams from_file = build_request(tools, wire, kSeed)->sampling;
  CHECK(from_file.temperature == 0.7F);
  CHECK(from_file.top_p == 0.8F);
  CHECK(from_file.top_k == 20);
  CHECK(from_file.seed == 42);
  wire.mutable_sampling()->set_temperature(0);
  wire.mutable_sampling()->set_top_k(0);
  wire.mutable_sampling()->set_seed(7);
  const SamplingParams asked = build_request(tools, wire, kSeed)->sampling;
  CHECK(asked.temperature == 0);
  CHECK(asked.top_k == 0);
  CHECK(asked.top_p == 0.8F);
  CHECK(asked.seed == 7);
  tools.defaults.do_sample = false;
  wire.clear_sampling();
  CHECK(build_request(tools, wire, kSeed)->sampling.temperature == 0);
}

TEST_CASE("a split must lie inside the prompt") {
  const TextTools tools;
  wire::GenerateRequest wire;
  for (std::uint32_t i = 0; i < 5; ++i) wire.mutable_tokens()->add_ids(i);
  wire.set_prefill_split(4);
  CHECK(build_request(tools, wire, kSeed)->prefill_split == 4);
  wire.set_prefill_split(5);
  const auto outside = build_request(tools, wire, kSeed);
  REQUIRE_FALSE(outside.has_value());
  CHECK(outside.error().text.find("5") != std::string::npos);
}
