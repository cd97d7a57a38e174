#include "tests/unit/gateway/rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

Plan tool_plan() {
  Plan plan;
  plan.tools = {weather_tool()};
  return plan;
}

/// What a client of Anthropic's streams builds, checking the order of the events as it goes.
struct Message {
  Loose message, delta;
  std::vector<Loose> blocks;
  bool open = false, stopped = false;

  explicit Message(const std::string& stream) {
    for (const Frame& frame : frames_of(stream)) {
      const Loose data = Loose::parse(frame.data);
      REQUIRE(data["type"] == frame.event);
      REQUIRE_FALSE(stopped);
      take(frame.event, data);
    }
    CHECK(stopped);
  }

 private:
  void take(const std::string& event, const Loose& data) {
    if (event == "ping") return;
    if (event == "message_start") {
      REQUIRE(message.is_null());
      message = data["message"];
    } else if (event == "content_block_start") {
      REQUIRE((!message.is_null() && !open && delta.is_null()));
      REQUIRE(data["index"] == blocks.size());
      blocks.push_back(data["content_block"]);
      partial_.clear();
      open = true;
    } else if (event == "content_block_delta") {
      REQUIRE(open);
      REQUIRE(data["index"] == blocks.size() - 1);
      more(data["delta"]);
    } else if (event == "content_block_stop") {
      REQUIRE(open);
      REQUIRE(data["index"] == blocks.size() - 1);
      open = false;
      if (blocks.back()["type"] == "tool_use") blocks.back()["input"] = Loose::parse(partial_);
    } else if (event == "message_delta") {
      REQUIRE_FALSE(open);
      delta = data;
    } else {
      REQUIRE(event == "message_stop");
      REQUIRE_FALSE(delta.is_null());
      stopped = true;
    }
  }
  void more(const Loose& d) {
    if (d["type"] == "text_delta") {
      REQUIRE(blocks.back()["type"] == "text");
      blocks.back()["text"] = blocks.back()["text"].get<std::string>() + d["text"].get<std::string>();
    } else {
      REQUIRE(d["type"] == "input_json_delta");
      REQUIRE(blocks.back()["type"] == "tool_use");
      REQUIRE(blocks.back()["input"] == Loose::object());
      partial_ += d["partial_json"].get<std::string>();
    }
  }
  std::string partial_;
};

const Loose kCall = Loose::parse(R"({"type": "tool_use", "id": "call_1", "name": "get_weather",
                                     "input": {"city": "Berlin", "days": 3}})");

}  // namespace

TEST_CASE("messages: a stream of text") {
  const Plan plan;
  Conversation talk(plan, messages_reply(plan, context()));
  talk.begin(10);
  talk.text("Hel");
  talk.text("lo");
  talk.end(done_with("stop"));
  const Message got(talk.stream);
  CHECK(got.message == Loose::parse(R"({"id": "msg_7", "type": "message", "role": "assistant", "model": "m",
      "content": [], "stop_reason": null, "stop_sequence": null,
      "usage": {"input_tokens": 10, "output_tokens": 0}})"));
  REQUIRE(got.blocks.size() == 1);
  CHECK(got.blocks[0] == Loose::parse(R"({"type": "text", "text": "Hello"})"));
  CHECK(got.delta == Loose::parse(R"({"type": "message_delta",
      "delta": {"stop_reason": "end_turn", "stop_sequence": null},
      "usage": {"input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4,
                "output_tokens": 3}})"));
}

TEST_CASE("messages: a stream of text and calls") {
  const Plan plan = tool_plan();
  Conversation talk(plan, messages_reply(plan, context()));
  talk.begin(10);
  for (const char c : "Well.\n" + kWeatherCall + "\nand" + kWeatherCall) talk.text(std::string(1, c));
  talk.end(done_with("stop"));
  const Message got(talk.stream);
  REQUIRE(got.blocks.size() == 4);
  CHECK(got.blocks[0]["text"] == "Well.");
  CHECK(got.blocks[1] == kCall);
  CHECK(got.blocks[2]["text"] == "\nand");
  CHECK(got.blocks[3]["id"] == "call_2");
  CHECK(got.delta["delta"]["stop_reason"] == "tool_use");
}

TEST_CASE("messages: a call without arguments, and one that the answer's end cut off") {
  const Plan plan = tool_plan();
  Conversation talk(plan, messages_reply(plan, context()));
  talk.begin(10);
  talk.text("<tool_call>\n<function=get_weather>\n</function>\n</tool_call>");
  talk.text("<tool_call>\n<function=get_weather>\n<parameter=city>\nBer");
  talk.end(done_with("length"));
  const Message got(talk.stream);
  REQUIRE(got.blocks.size() == 2);
  CHECK(got.blocks[0]["input"] == Loose::object());
  CHECK(got.blocks[1]["input"] == Loose({{"city", "Ber"}}));
  CHECK(got.delta["delta"]["stop_reason"] == "max_tokens");
}

TEST_CASE("messages: an answer without a token is a message all the same") {
  const Plan plan;
  Conversation talk(plan, messages_reply(plan, context()));
  talk.begin(10);
  talk.end(done_with("stop"));
  CHECK(Message(talk.stream).blocks.empty());
}

TEST_CASE("messages: whole answers") {
  const Plan plan = tool_plan();
  SECTION("text") {
    Conversation talk(plan, messages_reply(plan, context()));
    talk.text("Hi");
    CHECK(Loose::parse(talk.whole(done_with("stop"))) ==
          Loose::parse(R"({"id": "msg_7", "type": "message", "role": "assistant", "model": "m",
              "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn", "stop_sequence": null,
              "usage": {"input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4,
                        "output_tokens": 3}})"));
  }
  SECTION("nothing") {
    Conversation talk(plan, messages_reply(plan, context()));
    CHECK(Loose::parse(talk.whole(done_with("stop")))["content"] ==
          Loose::parse(R"([{"type": "text", "text": ""}])"));
  }
  SECTION("calls, and text with them") {
    Conversation talk(plan, messages_reply(plan, context()));
    talk.text(kWeatherCall);
    CHECK(Loose::parse(talk.whole(done_with("stop")))["content"] == Loose::array({kCall}));
    Conversation both(plan, messages_reply(plan, context()));
    both.text("Well.\n" + kWeatherCall);
    const Loose content = Loose::parse(both.whole(done_with("stop")))["content"];
    CHECK(content == Loose::array({Loose::parse(R"({"type": "text", "text": "Well."})"), kCall}));
  }
  SECTION("numbers keep their digits, and nesting does not matter") {
    const std::string digits = "123456789012345678901234567890";
    const std::string deep = std::string(kJsonDepthMax, '[') + std::string(kJsonDepthMax, ']');
    for (const std::string& value : {"{\"n\": " + digits + "}", deep}) {
      Conversation talk(plan, messages_reply(plan, context()));
      talk.text("<tool_call>\n<function=get_weather>\n<parameter=x>\n" + value +
                "\n</parameter>\n</function>");
      const std::string body = talk.whole(done_with("stop"));
      CHECK(Loose::parse(body)["content"].size() == 1);
      CHECK(body.find("{\"x\": " + value + "}") != std::string::npos);
    }
  }
}

TEST_CASE("messages: why an answer ended") {
  Plan plan = tool_plan();
  const auto ending = [&](const std::string& text, const char* finish, const char* stop_string) {
    Conversation talk(plan, messages_reply(plan, context()));
    talk.text(text);
    wire::DoneEvent done = done_with(finish);
    done.set_stop_string(stop_string);
    const Loose json = Loose::parse(talk.whole(done));
    return json["stop_reason"].get<std::string>() + "/" + json["stop_sequence"].dump();
  };
  CHECK(ending("a", "stop", "") == "end_turn/null");
  CHECK(ending("a", "stop", "END") == "stop_sequence/\"END\"");
  CHECK(ending("a", "length", "") == "max_tokens/null");
  CHECK(ending(kWeatherCall, "stop", "") == "tool_use/null");
  CHECK(ending(kWeatherCall, "stop", "END") == "tool_use/null");
  CHECK(ending(kWeatherCall, "length", "") == "max_tokens/null");
  plan.one_call = true;  // the gateway has the worker stop
  CHECK(ending(kWeatherCall, "cancelled", "") == "tool_use/null");
  CHECK(ending(kWeatherCall + "and so on", "length", "") == "tool_use/null");
}

TEST_CASE("messages: pings, progress and errors") {
  const Plan plan;
  const auto reply = messages_reply(plan, context());
  CHECK(reply->ping() == "event: ping\ndata: {\"type\":\"ping\"}\n\n");
  CHECK(reply->progress({}) == reply->ping());
  const std::vector<Frame> frames = frames_of(reply->error({.status = 503, .code = "c", .message = "a\nb"}));
  REQUIRE(frames.size() == 1);
  CHECK(frames[0].event == "error");
  CHECK(Loose::parse(frames[0].data) ==
        Loose::parse(R"({"type": "error", "error": {"type": "overloaded_error", "message": "a\nb"}})"));
}
