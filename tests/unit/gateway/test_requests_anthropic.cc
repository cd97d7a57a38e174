#include "daemons/common/limits.h"
#include "daemons/gateway/anthropic_request.h"
#include "tests/unit/gateway/request_rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

const std::string kHi = R"("messages": [{"role": "user", "content": "Hi"}])";

Expected<Plan> ask(const std::string& fields, const std::string& messages = kHi) {
  return messages_plan(
      json_of(R"({"max_tokens": 5, )" + messages + (fields.empty() ? "" : ", " + fields) + "}"));
}
/// One user's message with this content.
Expected<Plan> say(const std::string& content) {
  return ask("", R"("messages": [{"role": "user", "content": )" + content + "}]");
}
Expected<Plan> converse(const std::string& messages) { return ask("", R"("messages": [)" + messages + "]"); }

const std::string kTools =
    R"("tools": [{"name": "get_weather", "description": "d", "cache_control": {"type": "ephemeral"},
       "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}])";

}  // namespace

TEST_CASE("messages: defaults and every field") {
  const Plan plain = good(ask(""));
  CHECK(plain.request.max_tokens() == 5);
  CHECK(plain.request.fit_context());
  CHECK_FALSE(plain.stream);
  CHECK_FALSE(plain.one_call);
  CHECK_FALSE(plain.request.sampling().has_temperature());
  CHECK(conversation_of(plain) == Loose::parse(R"({"messages": [{"role": "user", "content": "Hi"}]})"));
  const Plan plan = good(ask(R"("model": "claude-x", "stream": true, "temperature": 0.5, "top_p": 0.25,
      "top_k": 7, "stop_sequences": ["a", "b"], "metadata": {"user_id": "u"}, "service_tier": "auto",
      "thinking": {"type": "disabled"}, "unknown": 1)"));
  CHECK(plan.model == "claude-x");
  CHECK(plan.stream);
  CHECK(plan.request.sampling().temperature() == 0.5F);
  CHECK(plan.request.sampling().top_p() == 0.25F);
  CHECK(plan.request.sampling().top_k() == 7);
  REQUIRE(plan.request.stop_size() == 2);
  CHECK(plan.request.stop(1) == "b");
}

TEST_CASE("messages: max_tokens has to be there") {
  CHECK(bad(messages_plan(json_of("{" + kHi + "}"))).parameter == "max_tokens");
  for (const char* wrong : {"0", "-1", "1.5", "\"5\"", "null"}) {
    CAPTURE(wrong);
    CHECK(
        bad(messages_plan(json_of(R"({"max_tokens": )" + std::string(wrong) + ", " + kHi + "}"))).parameter ==
        "max_tokens");
  }
  const Plan most = good(messages_plan(json_of(R"({"max_tokens": 4294967295, )" + kHi + "}")));
  CHECK(most.request.max_tokens() == limits::kMaxTokens);
}

TEST_CASE("messages: null is absent, wrong types are refused by name") {
  CHECK(good(ask(R"("model": null, "stream": null, "temperature": null, "top_p": null, "top_k": null,
      "stop_sequences": null, "system": null, "tools": null, "tool_choice": null)"))
            .request.stop_size() == 0);
  const std::vector<std::pair<std::string, std::vector<std::string>>> wrong = {
      {"model", {"1"}},
      {"stream", {"1", "\"\""}},
      {"temperature", {"-1", "\"1\""}},
      {"top_p", {"2"}},
      {"top_k", {"-1", "1.5"}},
      {"stop_sequences", {"1", "[1]"}},
      {"system", {"1", "{}", "[1]", R"([{"type": "image"}])", R"([{"type": "text"}])"}},
      {"tools", {"{}", "\"x\""}},
      {"tools[0]", {}},
      {"tool_choice", {"\"auto\"", "[]", "{}", R"({"type": "required"})", R"({"type": "any"})"}},
  };
  for (const auto& [key, values] : wrong) {
    for (const std::string& value : values) {
      CAPTURE(key, value);
      CHECK(bad(ask("\"" + key + "\": " + value)).parameter == key);
    }
  }
  for (const char* body : {"[]", "null", "7"})
    for (const auto& make : {messages_plan, count_tokens_plan})
      CHECK(bad(make(json_of(body))).message == "the body is not a JSON object");
}

TEST_CASE("messages: the system prompt, without the billing line") {
  const auto system_of = [](const std::string& system) {
    const Loose messages = conversation_of(good(ask("\"system\": " + system)))["messages"];
    return messages[0]["role"] == "system" ? messages[0]["content"].get<std::string>() : "(none)";
  };
  CHECK(system_of(R"("Be brief.")") == "Be brief.");
  CHECK(system_of(R"([{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
      {"type": "text", "text": "b"}])") == "a\nb");
  CHECK(system_of(R"("")") == "(none)");
  CHECK(system_of("[]") == "(none)");
  // As text only the line goes, as blocks the block.
  CHECK(system_of(R"("x-anthropic-billing-header: cc_version=1; cch=abc;\nBe brief.\nx")") == "Be brief.\nx");
  CHECK(system_of(R"("x-anthropic-billing-header: cch=abc;")") == "(none)");
  CHECK(system_of(R"([{"type": "text", "text": "x-anthropic-billing-header: cch=abc;"},
      {"type": "text", "text": "Be brief."}])") == "Be brief.");
  CHECK(system_of(R"([{"type": "text", "text": "x-anthropic-billing-header: cch=abc;"}])") == "(none)");
  // Elsewhere it is text like any other.
  CHECK(system_of(R"("Say x-anthropic-billing-header: a")") == "Say x-anthropic-billing-header: a");
}

TEST_CASE("messages: content as text and as blocks") {
  CHECK(conversation_of(good(say(R"([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])"))) ==
        Loose::parse(R"({"messages": [{"role": "user", "content": "a\nb"}]})"));
  CHECK(conversation_of(good(say(R"([{"type": "thinking", "thinking": "t", "signature": "s"},
      {"type": "redacted_thinking", "data": "d"}, {"type": "text", "text": "a"}])"))) ==
        Loose::parse(R"({"messages": [{"role": "user", "content": "a"}]})"));
  const ApiError image = bad(say(R"([{"type": "text", "text": "a"}, {"type": "image", "source": {}}])"));
  CHECK(image.parameter == "messages[0].content[1]");
  CHECK(image.message.find("\"image\"") != std::string::npos);
  CHECK(image.message.find("this model reads text") != std::string::npos);
  for (const char* block :
       {"1", "null", "{}", R"({"type": 1})", R"({"type": "document"})", R"({"type": "text"})",
        R"({"type": "text", "text": 1})", R"({"type": "tool_use"})"}) {
    CAPTURE(block);
    CHECK(bad(say(std::string("[") + block + "]")).parameter == "messages[0].content[0]");
  }
  for (const char* content : {"1", "{}", "true"}) {
    CAPTURE(content);
    CHECK(bad(say(content)).parameter == "messages[0].content");
  }
}

TEST_CASE("messages: what is no list of messages") {
  for (const char* messages : {"null", "[]", "{}", "\"x\""}) {
    CAPTURE(messages);
    CHECK(bad(ask("", R"("messages": )" + std::string(messages))).parameter == "messages");
  }
  CHECK(bad(ask("", R"("x": 1)")).parameter == "messages");
  for (const char* message :
       {"1", "{}", R"({"role": "system", "content": "a"})", R"({"role": 1, "content": "a"})"}) {
    CAPTURE(message);
    CHECK(bad(converse(message)).parameter == "messages[0].role");
  }
}

TEST_CASE("messages: tool use and results become the conversation that the model knows") {
  const Plan plan = good(converse(R"({"role": "user", "content": "Weather?"},
      {"role": "assistant", "content": [{"type": "text", "text": "Looking."},
        {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "A", "days": 2}},
        {"type": "tool_use", "id": "t2", "name": "now"}]},
      {"role": "user", "content": [
        {"type": "tool_result", "tool_use_id": "t1", "content": "sun"},
        {"type": "tool_result", "tool_use_id": "t2", "is_error": true,
         "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "clock"}]},
        {"type": "text", "text": "And?"}]})"));
  CHECK(rendered(plan) ==
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\nLooking.\n\n<tool_call>\n"
        "<function=get_weather>\n<parameter=city>\nA\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
        "</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nsun\n</tool_response>\n<tool_response>\nError: no\nclock\n"
        "</tool_response><|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n");
  const Loose messages = conversation_of(plan)["messages"];
  CHECK(messages[1]["tool_calls"][0]["id"] == "t1");
  // Results alone: no empty turn of the user behind them.
  const Plan results = good(converse(R"({"role": "user", "content": [{"type": "tool_result",
      "tool_use_id": "t", "content": null}]})"));
  CHECK(conversation_of(results) == Loose::parse(R"({"messages": [{"role": "tool", "content": ""}]})"));
  const ApiError image = bad(say(R"([{"type": "tool_result", "content": [{"type": "image"}]}])"));
  CHECK(image.parameter == "messages[0].content[0].content");
  CHECK(image.message.find("reads text only") != std::string::npos);
}

TEST_CASE("messages: an assistant's message at the end begins the answer") {
  const Plan plan =
      good(converse(R"({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A: "})"));
  CHECK(plan.request.answer_prefix() == "A: ");
  CHECK(plan.answer_begins.empty());  // the client has it
  CHECK(conversation_of(plan)["messages"].size() == 1);
  // Not one that calls tools: the model would have to go on behind the call.
  const Plan call = good(converse(R"({"role": "user", "content": "Q"},
      {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]})"));
  CHECK(call.request.answer_prefix().empty());
  CHECK(conversation_of(call)["messages"].size() == 2);
  const Plan both = good(ask(kTools + R"(, "tool_choice": {"type": "any"})",
                             R"("messages": [{"role": "user", "content": "Q"},
                                             {"role": "assistant", "content": "Sure."}])"));
  CHECK(both.request.answer_prefix() == "Sure.<tool_call>\n<function=");
  CHECK(both.answer_begins == "<tool_call>\n<function=");
}

TEST_CASE("messages: tools") {
  const Plan plan = good(ask(kTools));
  REQUIRE(plan.tools.size() == 1);
  CHECK(plan.tools[0].name == "get_weather");
  CHECK(plan.tools[0].parameters["properties"]["city"]["type"] == "string");
  CHECK(conversation_of(plan)["tools"] == Loose::parse(R"([{"type": "function", "function": {
      "name": "get_weather", "description": "d",
      "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}])"));
  CHECK(rendered(plan).find("<name>city</name>\n<type>string</type>") != std::string::npos);
  // What Anthropic's servers would run is not offered; not all of it has a name.
  const Plan others = good(ask(R"("tools": [{"type": "web_search_20250305", "name": "web_search"},
      {"type": "mcp_toolset", "mcp_server_name": "x"}, {"type": "custom", "name": "f",
      "description": null}])"));
  REQUIRE(others.tools.size() == 1);
  CHECK(others.tools[0].name == "f");
  CHECK(rendered(others).find("<name>f</name>\n<parameters>") != std::string::npos);
  CHECK_FALSE(conversation_of(good(ask(R"("tools": [{"type": "web_search_20250305", "name": "w"}])")))
                  .contains("tools"));
  for (const char* tool : {"1", "null", "{}", R"({"name": ""})", R"({"name": 1})"}) {
    CAPTURE(tool);
    CHECK(bad(ask(R"("tools": [{"name": "f"}, )" + std::string(tool) + "]")).parameter == "tools[1]");
  }
}

TEST_CASE("messages: tool_choice") {
  const auto choose = [](const std::string& choice) { return ask(kTools + R"(, "tool_choice": )" + choice); };
  const Plan any_number = good(choose(R"({"type": "auto"})"));
  CHECK(any_number.request.answer_prefix().empty());
  CHECK_FALSE(any_number.one_call);
  CHECK(good(choose(R"({"type": "auto", "disable_parallel_tool_use": true})")).one_call);
  const Plan none = good(choose(R"({"type": "none"})"));
  CHECK(none.tools.empty());
  CHECK_FALSE(conversation_of(none).contains("tools"));
  CHECK(good(choose(R"({"type": "any"})")).answer_begins == "<tool_call>\n<function=");
  const Plan named = good(choose(R"({"type": "tool", "name": "get_weather"})"));
  CHECK(named.request.answer_prefix() == "<tool_call>\n<function=get_weather>\n");
  CHECK(named.answer_begins == named.request.answer_prefix());
  for (const char* wrong :
       {R"({"type": "tool"})", R"({"type": "tool", "name": "other"})", R"({"type": 1})"}) {
    CAPTURE(wrong);
    CHECK(bad(choose(wrong)).parameter == "tool_choice");
  }
}

TEST_CASE("count_tokens: the same prompt, nothing to generate") {
  const Plan plan =
      good(count_tokens_plan(json_of("{\"model\": \"m\", \"system\": \"S\", " + kTools + ", " + kHi + "}")));
  CHECK(plan.request.tokenize());
  CHECK(plan.request.conversation_json() ==
        good(ask("\"system\": \"S\", " + kTools)).request.conversation_json());
  CHECK(bad(count_tokens_plan(json_of("{}"))).parameter == "messages");
}
