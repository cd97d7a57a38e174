#include <cmath>

#include "daemons/common/limits.h"
#include "daemons/gateway/openai_request.h"
#include "tests/unit/gateway/request_rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

const std::string kMessages = R"("messages": [{"role": "user", "content": "Hi"}])";

Expected<Plan> chat(const std::string& fields) {
  return chat_plan(json_of("{" + kMessages + (fields.empty() ? "" : ", " + fields) + "}"));
}
Expected<Plan> completion(const std::string& fields) {
  return completion_plan(json_of(R"({"prompt": "a")" + (fields.empty() ? "" : ", " + fields) + "}"));
}
const std::string kWeather =
    R"({"type": "function", "function": {"name": "get_weather", "description": "d",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}})";

}  // namespace

TEST_CASE("chat: defaults") {
  const Plan plan = good(chat(""));
  CHECK(plan.model.empty());
  CHECK_FALSE(plan.stream);
  CHECK_FALSE(plan.usage_chunk);
  CHECK_FALSE(plan.progress_chunks);
  CHECK_FALSE(plan.logprobs);
  CHECK_FALSE(plan.one_call);
  CHECK(plan.tools.empty());
  CHECK(plan.answer_begins.empty());
  const wire::GenerateRequest& request = plan.request;
  CHECK(request.id().empty());
  CHECK(request.max_tokens() == 0);  // until the context is full
  CHECK(request.fit_context());
  CHECK(request.logprobs() == 0);
  CHECK(request.stop_size() == 0);
  CHECK(request.answer_prefix().empty());
  const wire::Sampling& sampling = request.sampling();
  CHECK_FALSE(sampling.has_temperature());  // the model's own defaults hold
  CHECK_FALSE(sampling.has_top_k());
  CHECK_FALSE(sampling.has_top_p());
  CHECK_FALSE(sampling.has_min_p());
  CHECK_FALSE(sampling.has_repetition_penalty());
  CHECK_FALSE(sampling.has_seed());
  CHECK(conversation_of(plan) == Loose::parse("{" + kMessages + "}"));
}

TEST_CASE("chat: every field arrives") {
  const Plan plan = good(chat(R"("model": "gpt-4o", "stream": true, "stream_options": {"include_usage": true},
      "return_progress": true, "temperature": 0.5, "top_p": 0.25, "min_p": 0.125, "top_k": 40,
      "repetition_penalty": 1.5, "seed": 18446744073709551615, "stop": ["a", "b"], "max_tokens": 17,
      "logprobs": true, "top_logprobs": 5, "n": 1, "presence_penalty": 0, "frequency_penalty": 0.0,
      "logit_bias": {}, "response_format": {"type": "text"}, "user": "u", "store": true, "unknown": [1])"));
  CHECK(plan.model == "gpt-4o");
  CHECK(plan.stream);
  CHECK(plan.usage_chunk);
  CHECK(plan.progress_chunks);
  CHECK(plan.logprobs);
  CHECK(plan.top_logprobs == 5);
  CHECK(plan.request.logprobs() == 5);
  CHECK(plan.request.max_tokens() == 17);
  REQUIRE(plan.request.stop_size() == 2);
  CHECK(plan.request.stop(1) == "b");
  const wire::Sampling& sampling = plan.request.sampling();
  CHECK(sampling.temperature() == 0.5F);
  CHECK(sampling.top_p() == 0.25F);
  CHECK(sampling.min_p() == 0.125F);
  CHECK(sampling.top_k() == 40);
  CHECK(sampling.repetition_penalty() == 1.5F);
  CHECK(sampling.seed() == UINT64_MAX);
}

TEST_CASE("chat: other spellings of the same") {
  CHECK(good(chat(R"("max_completion_tokens": 9)")).request.max_tokens() == 9);
  CHECK(good(chat(R"("max_tokens": -1)")).request.max_tokens() == 0);
  CHECK(good(chat(R"("max_tokens": 4000000000)")).request.max_tokens() == stoker::limits::kMaxTokens);
  CHECK(good(chat(R"("stop": "x")")).request.stop(0) == "x");
  CHECK(good(chat(R"("repeat_penalty": 2)")).request.sampling().repetition_penalty() == 2);
  const wire::Sampling off = good(chat(R"("top_k": -1)")).request.sampling();
  CHECK((off.has_top_k() && off.top_k() == 0));
  CHECK_FALSE(good(chat(R"("seed": -1)")).request.sampling().has_seed());  // llama.cpp: any
  CHECK(good(chat(R"("seed": -2)")).request.sampling().seed() == UINT64_MAX - 1);
  const Plan plain = good(chat(R"("logprobs": true)"));
  CHECK(plain.request.logprobs() == 1);  // the token's own
  CHECK(plain.top_logprobs == 0);
  CHECK(good(chat(R"("top_logprobs": 3)")).request.logprobs() == 0);  // not asked for
}

TEST_CASE("null is absent") {
  std::string fields;
  for (const char* key : {"model",
                          "stream",
                          "stream_options",
                          "return_progress",
                          "temperature",
                          "top_p",
                          "min_p",
                          "top_k",
                          "repetition_penalty",
                          "repeat_penalty",
                          "seed",
                          "stop",
                          "max_tokens",
                          "max_completion_tokens",
                          "n",
                          "logit_bias",
                          "presence_penalty",
                          "frequency_penalty",
                          "response_format",
                          "tools",
                          "tool_choice",
                          "functions",
                          "function_call",
                          "logprobs",
                          "top_logprobs",
                          "grammar",
                          "json_schema",
                          "parallel_tool_calls",
                          "suffix",
                          "echo",
                          "best_of"})
    fields += std::string(fields.empty() ? "\"" : ", \"") + key + "\": null";
  const Plan chatted = good(chat(fields));
  CHECK(conversation_of(chatted) == Loose::parse("{" + kMessages + "}"));
  CHECK(chatted.request.max_tokens() == 0);
  CHECK_FALSE(chatted.request.sampling().has_seed());
  CHECK(good(completion(fields)).request.prompt() == "a");
}

TEST_CASE("what cannot be done is refused by name") {
  const std::vector<std::pair<std::string, std::string>> fields = {
      {"n", "2"},
      {"logit_bias", R"({"5": 1})"},
      {"presence_penalty", "0.5"},
      {"frequency_penalty", "-1"},
      {"grammar", R"("root ::= x")"},
      {"json_schema", "{}"},
      {"guided_json", "{}"},
      {"guided_regex", R"("a")"},
      {"guided_choice", "[]"},
      {"guided_grammar", R"("")"},
      {"structured_outputs", "{}"},
  };
  for (const auto& [key, value] : fields) {
    CAPTURE(key);
    const std::string field = "\"" + key + "\": " + value;
    const ApiError error = bad(chat(field));
    CHECK(error.parameter == key);
    CHECK(error.message.find(key) != std::string::npos);
    CHECK(error.message.find("not supported: ") != std::string::npos);
    CHECK(bad(completion(field)).parameter == key);
  }
  CHECK(bad(chat(R"("response_format": {"type": "json_object"})")).parameter == "response_format");
  CHECK(bad(chat(R"("functions": [])")).parameter == "functions");
  CHECK(bad(chat(R"("function_call": "auto")")).parameter == "function_call");
  CHECK(bad(completion(R"("echo": true)")).parameter == "echo");
  CHECK(bad(completion(R"("best_of": 3)")).parameter == "best_of");
}

TEST_CASE("wrong types and ranges are refused by name") {
  const std::vector<std::pair<std::string, std::vector<std::string>>> wrong = {
      {"model", {"1", "[]"}},
      {"stream", {"1", "\"true\""}},
      {"stream_options", {"true", "[]", R"({"include_usage": 1})"}},
      {"return_progress", {"\"\""}},
      {"temperature", {"-0.1", "101", "\"1\"", "[]", "true"}},
      {"top_p", {"-0.1", "1.1", "{}"}},
      {"min_p", {"2"}},
      {"top_k", {"-2", "1.5", "\"1\"", "16777217", "18446744073709551615"}},
      {"repetition_penalty", {"0", "101"}},
      {"repeat_penalty", {"-1"}},
      {"seed", {"1.5", "\"1\"", "18446744073709551616"}},
      {"stop", {"1", "[1]", "{}", "[null]"}},
      {"max_tokens", {"0", "-2", "1.5", "\"5\"", "4294967296"}},
      {"max_completion_tokens", {"0", "18446744073709551615"}},
  };
  for (const auto& [key, values] : wrong) {
    for (const std::string& value : values) {
      CAPTURE(key, value);
      const std::string field = "\"" + key + "\": " + value;
      for (const ApiError& error : {bad(chat(field)), bad(completion(field))}) {
        CHECK(error.status == 400);
        CHECK(error.code == "invalid_request");
        CHECK(error.parameter == key);
        CHECK(error.message.find(key) != std::string::npos);
      }
    }
  }
  for (const char* value : {"1", "\"true\""})
    CHECK(bad(chat(std::string(R"("logprobs": )") + value)).parameter == "logprobs");
  CHECK(bad(chat(R"("logprobs": true, "top_logprobs": 21)")).parameter == "top_logprobs");
  for (const char* value : {"21", "-1", "true"})
    CHECK(bad(completion(std::string(R"("logprobs": )") + value)).parameter == "logprobs");
}

TEST_CASE("bodies that are no object, and requests without messages or prompt") {
  for (const char* body : {"[]", "1", "null", "\"x\""}) {
    CAPTURE(body);
    for (const auto& make : {chat_plan, completion_plan, tokenize_plan})
      CHECK(bad(make(json_of(body))).message == "the body is not a JSON object");
  }
  CHECK(bad(chat_plan(json_of("{}"))).parameter == "messages");
  CHECK(bad(completion_plan(json_of("{}"))).parameter == "prompt");
  CHECK(bad(tokenize_plan(json_of("{}"))).parameter == "content");
}

TEST_CASE("chat: messages become what chat templates know") {
  const Plan plan = good(chat_plan(json_of(R"({"messages": [{"role": "developer", "content": "S"},
      {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
      {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
        "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
      {"role": "tool", "tool_call_id": "1", "content": "R"}]})")));
  CHECK(conversation_of(plan)["messages"][0] == Loose::parse(R"({"role": "system", "content": "S"})"));
  CHECK(rendered(plan) ==
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n"
        "</tool_call><|im_end|>\n<|im_start|>user\n<tool_response>\nR\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n");
}

TEST_CASE("chat: pictures are refused by the worker, with a sentence") {
  const Plan plan = good(chat_plan(json_of(R"({"messages": [{"role": "user", "content": [
      {"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:"}}]}]})")));
  const std::string why = not_rendered(plan);
  CHECK(why.find("messages[0].content[1]") != std::string::npos);
  CHECK(why.find("this model reads text only") != std::string::npos);
}

TEST_CASE("chat: tools reach the prompt in the order of their keys, and the answer's reader") {
  const Plan plan = good(chat("\"tools\": [" + kWeather + "]"));
  REQUIRE(plan.tools.size() == 1);
  CHECK(plan.tools[0].name == "get_weather");
  CHECK(plan.tools[0].parameters["properties"]["city"]["type"] == "string");
  CHECK(json_of(plan.request.conversation_json())["tools"][0] == json_of(kWeather));  // in order
  CHECK(rendered(plan).find("<name>get_weather</name>\n<description>d</description>") != std::string::npos);
  CHECK_FALSE(plan.one_call);
  CHECK(good(chat("\"tools\": [" + kWeather + R"(], "parallel_tool_calls": false)")).one_call);
  CHECK(good(chat(R"("tools": [])")).tools.empty());
  CHECK(good(chat(R"("tools": [{"function": {"name": "f"}}])")).tools.at(0).name == "f");
}

TEST_CASE("chat: tools that are none are refused with their place") {
  CHECK(bad(chat(R"("tools": {})")).parameter == "tools");
  CHECK(bad(chat("\"tools\": [" + kWeather + ", 7]")).parameter == "tools[1]");
  for (const char* tool :
       {"{}", "null", R"({"type": "web_search"})", R"({"type": "function"})",
        R"({"type": "function", "function": []})", R"({"type": "function", "function": {"name": 5}})"}) {
    CAPTURE(tool);
    CHECK(bad(chat(std::string(R"("tools": [)") + tool + "]")).parameter == "tools[0]");
  }
  CHECK(bad(chat("\"tools\": [" + kWeather + R"(], "parallel_tool_calls": "no")")).parameter ==
        "parallel_tool_calls");
}

TEST_CASE("chat: tool_choice") {
  const auto choose = [](const std::string& choice) {
    return chat("\"tools\": [" + kWeather + R"(], "tool_choice": )" + choice);
  };
  CHECK(good(choose(R"("auto")")).request.answer_prefix().empty());
  const Plan none = good(choose(R"("none")"));
  CHECK(none.tools.empty());
  CHECK_FALSE(conversation_of(none).contains("tools"));
  const Plan required = good(choose(R"("required")"));
  CHECK(required.request.answer_prefix() == "<tool_call>\n<function=");
  CHECK(required.answer_begins == required.request.answer_prefix());
  const Plan named = good(choose(R"({"type": "function", "function": {"name": "get_weather"}})"));
  CHECK(named.request.answer_prefix() == "<tool_call>\n<function=get_weather>\n");
  CHECK(named.answer_begins == named.request.answer_prefix());
  for (const char* wrong :
       {R"("any")", "1", "[]", "{}", R"({"type": "function"})", R"({"type": "function", "function": "f"})",
        R"({"type": "function", "function": {"name": 1}})",
        R"({"type": "function", "function": {"name": "g"}})"}) {
    CAPTURE(wrong);
    CHECK(bad(choose(wrong)).parameter == "tool_choice");
  }
  CHECK(bad(chat(R"("tool_choice": "required")")).parameter == "tool_choice");
  CHECK(good(chat(R"("tool_choice": "none")")).tools.empty());
}

TEST_CASE("completions: prompts") {
  CHECK(good(completion("")).request.prompt() == "a");
  CHECK(good(completion_plan(json_of(R"({"prompt": ["only"]})"))).request.prompt() == "only");
  for (const char* ids : {"[1, 2, 3]", "[[1, 2, 3]]"}) {
    const Plan plan = good(completion_plan(json_of(std::string(R"({"prompt": )") + ids + "}")));
    REQUIRE(plan.request.tokens().ids_size() == 3);
    CHECK(plan.request.tokens().ids(2) == 3);
  }
  CHECK(good(completion_plan(json_of(R"({"prompt": [5]})"))).request.tokens().ids(0) == 5);
  for (const char* wrong : {"7", "{}", "true", R"(["a", "b"])", "[[1], [2]]", "[1, \"a\"]", "[1, -1]",
                            "[1.5]", "[16777216]", "[null]"}) {
    CAPTURE(wrong);
    CHECK(bad(completion_plan(json_of(std::string(R"({"prompt": )") + wrong + "}"))).parameter == "prompt");
  }
}

TEST_CASE("completions: log-probabilities") {
  CHECK_FALSE(good(completion("")).logprobs);
  const Plan none = good(completion(R"("logprobs": 0)"));
  CHECK((none.logprobs && none.top_logprobs == 0 && none.request.logprobs() == 1));
  const Plan some = good(completion(R"("logprobs": 4)"));
  CHECK((some.logprobs && some.top_logprobs == 4 && some.request.logprobs() == 4));
}

TEST_CASE("completions: a suffix means to fill in the middle") {
  const Plan plan = good(completion(R"("suffix": "z", "stop": "END")"));
  CHECK(rendered(plan) ==
        "<|im_start|>system\nYou are a code completion assistant.<|im_end|>\n<|im_start|>user\n"
        "<|fim_prefix|>a<|fim_suffix|>z<|fim_middle|><|im_end|>\n<|im_start|>assistant\n");
  CHECK(plan.request.stop(0) == "END");
  std::set<std::string> stops(plan.request.stop().begin(), plan.request.stop().end());
  for (const char* stop :
       {"<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|file_sep|>"})
    CHECK(stops.contains(stop));
  CHECK(good(completion(R"("suffix": "")")).request.prompt() == "a");
  CHECK(bad(completion(R"("suffix": 1)")).parameter == "suffix");
  CHECK(bad(completion_plan(json_of(R"({"prompt": [1], "suffix": "z"})"))).parameter == "suffix");
}

TEST_CASE("tokenize: text or a conversation") {
  CHECK(good(tokenize_plan(json_of(R"({"content": "x"})"))).request.prompt() == "x");
  CHECK(good(tokenize_plan(json_of(R"({"prompt": ""})"))).request.prompt().empty());
  const Plan plan = good(tokenize_plan(json_of("{" + kMessages + ", \"tools\": [" + kWeather + "]}")));
  CHECK(plan.request.tokenize());
  CHECK(conversation_of(plan).contains("tools"));
  CHECK(bad(tokenize_plan(json_of(R"({"content": 1})"))).parameter == "content");
  CHECK(bad(tokenize_plan(json_of("{" + kMessages + R"(, "tools": 1})"))).parameter == "tools");
}
