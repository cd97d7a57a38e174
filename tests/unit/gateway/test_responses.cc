#include "daemons/gateway/openai_request.h"
#include "daemons/gateway/responses_request.h"
#include "tests/unit/gateway/request_rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

Expected<Plan> ask(const std::string& fields) { return responses_plan(json_of("{" + fields + "}")); }

const std::string kTool = R"({"type": "function", "name": "get_weather", "description": "d",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "strict": true})";

/// What a client of the stream builds: items by index, each opened once, filled and closed in order.
struct Items {
  std::vector<Loose> open, closed;
  std::vector<std::string> grown;  ///< deltas of each item
  Loose last;

  explicit Items(const std::string& stream) {
    std::uint64_t number = 0;
    for (const Frame& frame : frames_of(stream)) {
      const Loose data = Loose::parse(frame.data);
      REQUIRE(data["type"] == frame.event);
      REQUIRE(data["sequence_number"] == number++);
      take(frame.event, data);
      last = data;
    }
    CHECK(open.size() == closed.size());
  }

 private:
  void take(const std::string& event, const Loose& data) {
    if (event == "response.output_item.added") {
      REQUIRE(open.size() == closed.size());
      REQUIRE(data["output_index"] == open.size());
      open.push_back(data["item"]);
      grown.emplace_back();
    } else if (event == "response.output_item.done") {
      REQUIRE(data["output_index"] == closed.size());
      REQUIRE(data["item"]["id"] == open[closed.size()]["id"]);
      closed.push_back(data["item"]);
    } else if (data.contains("item_id")) {
      REQUIRE(data["output_index"] == open.size() - 1);
      REQUIRE(data["item_id"] == open.back()["id"]);
      if (data.contains("delta")) grown.back() += data["delta"].get<std::string>();
      if (event == "response.function_call_arguments.done") CHECK(data["arguments"] == grown.back());
      if (event == "response.output_text.done") CHECK(data["text"] == grown.back());
    } else {
      REQUIRE(data.contains("response"));
    }
  }
};

}  // namespace

TEST_CASE("responses: text and every field") {
  const Plan plain = good(ask(R"("input": "Hi")"));
  CHECK(plain.request.max_tokens() == 0);
  CHECK(plain.request.fit_context());
  CHECK(conversation_of(plain) == Loose::parse(R"({"messages": [{"role": "user", "content": "Hi"}]})"));
  const Plan plan = good(ask(R"("input": "Hi", "instructions": "Be short.", "model": "gpt-x",
      "stream": true, "max_output_tokens": 7, "temperature": 0.5, "top_p": 0.25, "store": true,
      "include": [], "reasoning": {},
      "text": {"format": {"type": "text"}, "verbosity": "low"}, "previous_response_id": null)"));
  CHECK(plan.model == "gpt-x");
  CHECK(plan.stream);
  CHECK(plan.request.max_tokens() == 7);
  CHECK(plan.request.sampling().temperature() == 0.5F);
  CHECK(conversation_of(plan)["messages"][0] ==
        Loose::parse(R"({"role": "system", "content": "Be short."})"));
}

TEST_CASE("responses: items become the conversation that chat completions send") {
  const Plan plan = good(ask(R"("tools": [{"type": "web_search"}, )" + kTool + R"(], "input": [
      {"role": "developer", "content": "Be short."},
      {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"},
                                                      {"type": "input_text", "text": "b"}]},
      {"type": "reasoning", "summary": []},
      {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
      {"type": "function_call", "call_id": "1", "name": "get_weather", "arguments": "{\"city\": \"X\"}"},
      {"type": "function_call", "call_id": "2", "name": "get_weather", "arguments": "{\"city\": \"Y\"}"},
      {"type": "function_call_output", "call_id": "1", "output": "sun"},
      {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "rain"}]},
      {"type": "function_call", "call_id": "3", "name": "get_weather", "arguments": ""}])"));
  const Plan chat = good(chat_plan(json_of(R"({"tools": [{"type": "function", "function": {
          "name": "get_weather", "description": "d",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}], "messages": [
      {"role": "system", "content": "Be short."}, {"role": "user", "content": "a\nb"},
      {"role": "assistant", "content": "I look.", "tool_calls": [
        {"id": "1", "type": "function",
         "function": {"name": "get_weather", "arguments": "{\"city\": \"X\"}"}},
        {"id": "2", "type": "function",
         "function": {"name": "get_weather", "arguments": "{\"city\": \"Y\"}"}}]},
      {"role": "tool", "content": "sun"}, {"role": "tool", "content": "rain"},
      {"role": "assistant", "content": "", "tool_calls": [
        {"id": "3", "type": "function", "function": {"name": "get_weather", "arguments": ""}}]}]})")));
  CHECK(conversation_of(plan) == conversation_of(chat));
  CHECK(rendered(plan) == rendered(chat));
  REQUIRE(plan.tools.size() == 1);
  CHECK(plan.tools[0].name == "get_weather");
}

TEST_CASE("responses: tool_choice") {
  const std::string base = R"("input": "x", "tools": [)" + kTool + "]";
  CHECK(good(ask(base)).answer_begins.empty());
  CHECK(good(ask(base + R"(, "tool_choice": "none")")).tools.empty());
  CHECK_FALSE(conversation_of(good(ask(base + R"(, "tool_choice": "none")"))).contains("tools"));
  CHECK(good(ask(base + R"(, "tool_choice": "required")")).answer_begins == "<tool_call>\n<function=");
  CHECK(good(ask(base + R"(, "tool_choice": {"type": "function", "name": "get_weather"})")).answer_begins ==
        "<tool_call>\n<function=get_weather>\n");
  CHECK(good(ask(base + R"(, "parallel_tool_calls": false)")).one_call);
  CHECK(bad(ask(base + R"(, "tool_choice": {"type": "function", "name": "other"})")).parameter ==
        "tool_choice");
  CHECK(bad(ask(R"("input": "x", "tool_choice": "required")")).parameter == "tool_choice");
}

TEST_CASE("responses: what is refused, by name") {
  const auto refused = [](const std::string& fields) { return bad(ask(fields)).parameter; };
  CHECK(refused("") == "input");
  CHECK(refused(R"("input": 5)") == "input");
  CHECK(refused(R"("input": "x", "previous_response_id": "resp_1")") == "previous_response_id");
  CHECK(refused(R"("input": "x", "background": true)") == "background");
  CHECK(refused(R"("input": "x", "max_output_tokens": 0)") == "max_output_tokens");
  CHECK(refused(R"("input": "x", "tools": {})") == "tools");
  CHECK(refused(R"("input": "x", "tools": [{"type": "function"}])") == "tools[0]");
  CHECK(refused(R"("input": "x", "text": {"format": {"type": "json_schema"}})") == "text.format");
  CHECK(refused(R"("input": [{"type": "item_reference", "id": "x"}])") == "input[0]");
  CHECK(refused(R"("input": [{"type": "computer_call"}])") == "input[0]");
  CHECK(refused(R"("input": ["x"])") == "input[0]");
  CHECK(refused(R"("input": [{"role": "king", "content": "x"}])") == "input[0].role");
  CHECK(refused(R"("input": [{"role": "user", "content": [{"type": "input_image"}]}])") ==
        "input[0].content");
  CHECK(refused(R"("input": [{"type": "function_call_output"}])") == "input[0].output");
}

TEST_CASE("responses: a stream of text and calls") {
  Plan plan;
  plan.tools = {weather_tool()};
  Conversation talk(plan, responses_reply(plan, context()));
  talk.begin(10);
  for (const char* text : {"I ", "look."}) talk.text(text);
  talk.text("\n\n" + kWeatherCall);
  talk.text("\n" + kWeatherCall);
  talk.end(done_with("stop"));
  const Items items(talk.stream);
  REQUIRE(items.closed.size() == 3);
  CHECK(items.closed[0]["content"][0]["text"] == "I look.");
  CHECK(items.closed[0]["status"] == "completed");
  for (const std::size_t call : {1U, 2U}) {
    CHECK(items.open[call]["arguments"] == "");
    CHECK(items.closed[call]["type"] == "function_call");
    CHECK(items.closed[call]["name"] == "get_weather");
    CHECK(Loose::parse(items.closed[call]["arguments"].get<std::string>())["city"] == "Berlin");
    CHECK(items.closed[call]["arguments"] == items.grown[call]);
  }
  CHECK(items.closed[1]["call_id"] != items.closed[2]["call_id"]);
  CHECK(items.last["type"] == "response.completed");
  const Loose& response = items.last["response"];
  CHECK(response["status"] == "completed");
  CHECK(response["output"] == Loose(items.closed));
  CHECK(response["usage"] ==
        Loose::parse(R"({"input_tokens": 10, "input_tokens_details": {"cached_tokens": 4},
      "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 13})"));

  Conversation whole(plan, responses_reply(plan, context()));
  whole.text("I look.\n\n" + kWeatherCall + "\n" + kWeatherCall);
  Loose same = Loose::parse(whole.whole(done_with("stop")));
  REQUIRE(same["output"].size() == 3);
  CHECK(same["output"] == response["output"]);
}

TEST_CASE("responses: endings") {
  const Plan plan;
  Conversation cut(plan, responses_reply(plan, context()));
  cut.begin(0);
  cut.text("a");
  cut.end(done_with("length"));
  const Items items(cut.stream);
  CHECK(items.last["type"] == "response.incomplete");
  CHECK(items.last["response"]["incomplete_details"]["reason"] == "max_output_tokens");
  // An answer of nothing has one empty message when it is whole, as chat completions have.
  Conversation empty(plan, responses_reply(plan, context()));
  const Loose nothing = Loose::parse(empty.whole(done_with("stop")));
  CHECK(nothing["output"][0]["content"][0]["text"] == "");
  const auto reply = responses_reply(plan, context());
  const Loose failed = data_of(reply->error({.status = 503, .code = "worker_gone", .message = "why"})).at(0);
  CHECK(failed["type"] == "response.failed");
  CHECK(failed["response"]["error"]["code"] == "worker_gone");
}
