#include "daemons/gateway/openai_parts.h"
#include "tests/unit/gateway/rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

Plan weather_plan() {
  Plan plan;
  plan.stream = true;
  plan.tools = {weather_tool()};
  return plan;
}

/// A chunk without what differs in every request.
Loose bare(Loose chunk) {
  for (const char* key : {"id", "object", "created", "model"}) chunk.erase(key);
  return chunk;
}
Loose delta(const std::string& json, const Loose& finish = nullptr) {
  return {{"choices", {{{"index", 0}, {"delta", Loose::parse(json)}, {"finish_reason", finish}}}}};
}

wire::TokenEvent token_with_logprobs(const std::string& shown, const std::string& bytes, float logprob) {
  wire::TokenEvent event;
  event.set_text(shown);
  event.mutable_logprob()->set_text(bytes);
  event.mutable_logprob()->set_logprob(logprob);
  for (const char* other : {"x", "y", "z"}) {
    wire::TokenLogprob& top = *event.add_top();
    top.set_text(other);
    top.set_logprob(-2);
  }
  return event;
}

const Loose kUsage = Loose::parse(R"({"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13,
                                      "prompt_tokens_details": {"cached_tokens": 4}})");

}  // namespace

TEST_CASE("chat: a stream of text") {
  Plan plan;
  Conversation talk(plan, chat_reply(plan, context()));
  talk.begin(10);
  talk.text("Hel");
  talk.text("");
  talk.text("lo\n\xE2\x80\xA8");
  talk.end(done_with("stop"));
  const std::vector<Loose> data = data_of(talk.stream);
  REQUIRE(data.size() == 5);
  for (std::size_t i = 0; i + 1 < data.size(); ++i) {
    CHECK(data[i]["id"] == "chatcmpl-7");
    CHECK(data[i]["object"] == "chat.completion.chunk");
    CHECK(data[i]["created"] == 1700000000);
    CHECK(data[i]["model"] == "m");
  }
  CHECK(bare(data[0]) == delta(R"({"role": "assistant", "content": ""})"));
  CHECK(bare(data[1]) == delta(R"({"content": "Hel"})"));
  CHECK(bare(data[2]) == delta("{\"content\": \"lo\\n\xE2\x80\xA8\"}"));
  Loose last = bare(data[3]);
  CHECK(last["timings"]["predicted_n"] == 3);
  last.erase("timings");
  CHECK(last == delta("{}", "stop"));
  CHECK(data[4] == "[DONE]");
  for (const Frame& frame : frames_of(talk.stream)) CHECK(frame.event.empty());
}

TEST_CASE("chat: usage comes in a chunk of its own, without choices, when asked for") {
  Plan plan;
  plan.usage_chunk = true;
  Conversation talk(plan, chat_reply(plan, context()));
  talk.begin(10);
  talk.text("a");
  talk.end(done_with("length"));
  const std::vector<Loose> data = data_of(talk.stream);
  REQUIRE(data.size() == 5);
  for (std::size_t i = 0; i < 3; ++i) CHECK((data[i].contains("usage") && data[i]["usage"].is_null()));
  CHECK(data[2]["choices"][0]["finish_reason"] == "length");
  CHECK(bare(data[3]) == Loose({{"choices", Loose::array()}, {"usage", kUsage}}));
  CHECK(data[4] == "[DONE]");
}

TEST_CASE("chat: a stream with tool calls") {
  const Plan plan = weather_plan();
  Conversation talk(plan, chat_reply(plan, context()));
  talk.begin(10);
  for (const char c : "Well.\n" + kWeatherCall + "\n" + kWeatherCall) talk.text(std::string(1, c));
  talk.end(done_with("stop"));
  std::vector<Loose> data = data_of(talk.stream);
  std::string text;
  std::vector<std::string> arguments;
  for (std::size_t i = 0; i + 2 < data.size(); ++i) {
    const Loose& d = data[i]["choices"][0]["delta"];
    CHECK(data[i]["choices"][0]["finish_reason"].is_null());
    if (d.contains("content")) text += d["content"].get<std::string>();
    if (!d.contains("tool_calls")) continue;
    REQUIRE(d["tool_calls"].size() == 1);
    const Loose& call = d["tool_calls"][0];
    if (call.contains("id")) {
      CHECK(call == Loose({{"index", arguments.size()},
                           {"id", "call_" + std::to_string(arguments.size() + 1)},
                           {"type", "function"},
                           {"function", {{"name", "get_weather"}, {"arguments", ""}}}}));
      arguments.emplace_back();
    } else {
      CHECK(call["index"] == arguments.size() - 1);
      CHECK(call.size() == 2);
      REQUIRE(call["function"]["arguments"].is_string());
      arguments.back() += call["function"]["arguments"].get<std::string>();
    }
  }
  CHECK(text == "Well.");
  REQUIRE(arguments.size() == 2);
  for (const std::string& one : arguments)
    CHECK(Loose::parse(one) == Loose({{"city", "Berlin"}, {"days", 3}}));
  CHECK(data[data.size() - 2]["choices"][0]["finish_reason"] == "tool_calls");
}

TEST_CASE("chat: whole answers") {
  SECTION("text") {
    Plan plan;
    Conversation talk(plan, chat_reply(plan, context()));
    talk.text("Hel");
    wire::DoneEvent done = done_with("stop");
    done.set_text("lo");  // what was held back
    Loose json = Loose::parse(talk.whole(done));
    CHECK(json["timings"]["cache_n"] == 4);
    json.erase("timings");
    CHECK(json == Loose::parse(R"({"id": "chatcmpl-7", "object": "chat.completion", "created": 1700000000,
        "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello",
        "refusal": null}, "logprobs": null, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13,
                  "prompt_tokens_details": {"cached_tokens": 4}}})"));
  }
  SECTION("calls alone: content is null, arguments are a string") {
    const Plan plan = weather_plan();
    Conversation talk(plan, chat_reply(plan, context()));
    talk.text(kWeatherCall);
    const Loose json = Loose::parse(talk.whole(done_with("stop")));
    const Loose& choice = json["choices"][0];
    CHECK(choice["finish_reason"] == "tool_calls");
    CHECK(choice["message"] == Loose::parse(R"({"role": "assistant", "content": null, "refusal": null,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather",
        "arguments": "{\"city\": \"Berlin\", \"days\": 3}"}}]})"));
  }
  SECTION("text and a call") {
    const Plan plan = weather_plan();
    Conversation talk(plan, chat_reply(plan, context()));
    talk.text("Well.\n" + kWeatherCall);
    CHECK(Loose::parse(talk.whole(done_with("stop")))["choices"][0]["message"]["content"] == "Well.");
  }
}

TEST_CASE("chat: why an answer ended") {
  Plan plan = weather_plan();
  const auto reason = [&](const std::string& text, const char* finish) {
    Conversation talk(plan, chat_reply(plan, context()));
    talk.text(text);
    return Loose::parse(talk.whole(done_with(finish)))["choices"][0]["finish_reason"].get<std::string>();
  };
  CHECK(reason("a", "stop") == "stop");
  CHECK(reason("a", "length") == "length");
  CHECK(reason(kWeatherCall, "stop") == "tool_calls");
  CHECK(reason("<tool_call>\n<function=get_weather>\n<parameter=city>\nBer", "length") == "length");
  plan.one_call = true;  // the gateway has the worker stop
  CHECK(reason(kWeatherCall, "cancelled") == "tool_calls");
  CHECK(reason(kWeatherCall + " and so on", "length") == "tool_calls");
}

TEST_CASE("chat: log-probabilities stand with the text that they belong to") {
  Plan plan;
  plan.logprobs = true;
  plan.top_logprobs = 2;
  const Loose entry = Loose::parse(R"({"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
      {"token": "x", "logprob": -2.0, "bytes": [120]}, {"token": "y", "logprob": -2.0, "bytes": [121]}]})");
  SECTION("whole") {
    Conversation talk(plan, chat_reply(plan, context()));
    talk.token(token_with_logprobs("a", "a", -0.5F));
    talk.token(token_with_logprobs("", "\xE2\x82", -0.5F));
    const Loose logprobs = Loose::parse(talk.whole(done_with("stop")))["choices"][0]["logprobs"];
    REQUIRE(logprobs["content"].size() == 2);
    CHECK(logprobs["refusal"].is_null());
    CHECK(logprobs["content"][0] == entry);
    CHECK(logprobs["content"][1]["bytes"] == Loose({0xE2, 0x82}));  // exact, where the text cannot be
  }
  SECTION("streamed, with a token whose text comes later") {
    Conversation talk(plan, chat_reply(plan, context()));
    talk.begin(1);
    talk.token(token_with_logprobs("", "\xE2\x82", -0.5F));
    talk.token(token_with_logprobs("\xE2\x82\xAC", "\xAC", -0.5F));
    talk.token(token_with_logprobs("", "b", -0.5F));
    talk.end(done_with("stop"));
    const std::vector<Loose> data = data_of(talk.stream);
    REQUIRE(data.size() == 4);
    CHECK(data[0]["choices"][0]["logprobs"]["content"].empty());
    CHECK(data[1]["choices"][0]["logprobs"]["content"].size() == 2);
    CHECK(data[2]["choices"][0]["logprobs"]["content"].size() == 1);  // with the end
  }
}

TEST_CASE("chat: progress, pings and errors") {
  Plan plan;
  wire::ProgressEvent progress;
  progress.set_prompt_done(5);
  progress.set_prompt_total(9);
  const auto quiet = chat_reply(plan, context());
  CHECK(quiet->progress(progress) == ": prompt 5 of 9 tokens\n\n");
  CHECK(quiet->ping() == ": ping\n\n");
  CHECK(data_of(quiet->error({.status = 503, .code = "c", .message = "m"})).at(0) ==
        Loose::parse(R"({"error": {"message": "m", "type": "server_error", "param": null, "code": "c"}})"));
  plan.progress_chunks = true;
  const auto told = chat_reply(plan, context());
  const Loose chunk = data_of(told->progress(progress)).at(0);
  CHECK(chunk["prompt_progress"] == Loose::parse(R"({"total": 9, "processed": 5, "queue_position": 0})"));
  CHECK(chunk["choices"][0]["delta"] == Loose::object());
  progress.set_queue_position(2);
  CHECK(quiet->progress(progress) == ": place 2 in the queue\n\n");
}

TEST_CASE("timings: rates of what was computed") {
  wire::Stats stats = done_with("stop", 10, 4, 3).stats();
  stats.set_prefill_seconds(2);
  stats.set_decode_seconds(0.5);
  stats.set_experts_hinted(7);
  const Json json = timings(stats);
  CHECK(json["prompt_n"] == 6);
  CHECK(json["prompt_ms"] == 2000);
  CHECK(json["prompt_per_second"] == 3);
  CHECK(json["predicted_per_second"] == 4);  // two tokens: the first is the prefill's
  CHECK(json["predicted_per_token_ms"] == 250);
  CHECK(json["experts"]["prefetched"] == 7);
  const Json nothing = timings(wire::Stats());
  CHECK(nothing["prompt_per_second"] == 0);
  CHECK(nothing["predicted_per_token_ms"] == 0);
  CHECK(timings(done_with("stop", 2, 5, 0).stats())["prompt_n"] == 0);
}

TEST_CASE("completions: streamed and whole") {
  Plan plan;
  plan.usage_chunk = true;
  Conversation talk(plan, completion_reply(plan, context()));
  talk.begin(10);
  talk.text("ab");
  talk.end(done_with("length"));
  const std::vector<Loose> data = data_of(talk.stream);
  REQUIRE(data.size() == 4);
  CHECK(data[0] == Loose::parse(R"({"id": "cmpl-7", "object": "text_completion", "created": 1700000000,
      "model": "m", "choices": [{"index": 0, "text": "ab", "logprobs": null, "finish_reason": null}],
      "usage": null})"));
  CHECK(data[1]["choices"][0]["finish_reason"] == "length");
  CHECK(data[1]["choices"][0]["text"] == "");
  CHECK(data[2]["choices"] == Loose::array());
  CHECK(data[2]["usage"] == kUsage);
  CHECK(data[3] == "[DONE]");

  Conversation again(plan, completion_reply(plan, context()));
  again.text("ab");
  Loose whole = Loose::parse(again.whole(done_with("stop")));
  CHECK(whole["timings"]["prompt_n"] == 6);
  whole.erase("timings");
  CHECK(whole["usage"] == kUsage);
  CHECK(whole["choices"] ==
        Loose::parse(R"([{"index": 0, "text": "ab", "logprobs": null, "finish_reason": "stop"}])"));
}

TEST_CASE("completions: log-probabilities in the old form") {
  Plan plan;
  plan.logprobs = true;
  plan.top_logprobs = 2;
  Conversation talk(plan, completion_reply(plan, context()));
  talk.begin(1);
  talk.token(token_with_logprobs("ab", "ab", -0.5F));
  talk.token(token_with_logprobs("c", "c", -1));
  talk.end(done_with("stop"));
  const std::vector<Loose> data = data_of(talk.stream);
  CHECK(data.at(0)["choices"][0]["logprobs"] ==
        Loose::parse(R"({"tokens": ["ab"], "token_logprobs": [-0.5], "top_logprobs": [{"x": -2.0, "y": -2.0}],
                         "text_offset": [0]})"));
  CHECK(data.at(1)["choices"][0]["logprobs"]["text_offset"] == Loose({2}));
  CHECK(data.at(2)["choices"][0]["logprobs"].is_null());
}

TEST_CASE("answers about tokens") {
  wire::TokensEvent event;
  CHECK(tokens_reply()->tokens(event) == R"({"count":0,"tokens":[]})");
  CHECK(count_reply()->tokens(event) == R"({"input_tokens":0})");
  for (const std::uint32_t id : {5U, 9U}) event.mutable_tokens()->add_ids(id);
  CHECK(tokens_reply()->tokens(event) == R"({"count":2,"tokens":[5,9]})");
  CHECK(count_reply()->tokens(event) == R"({"input_tokens":2})");
}
