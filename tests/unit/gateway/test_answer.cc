#include "daemons/gateway/answer.h"

#include <random>

#include "daemons/gateway/tool_arguments.h"
#include "tests/unit/gateway/rig.h"

using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

std::string argument(std::string_view value, const std::string& schema) {
  const std::string json = argument_json(value, json_of(schema));
  CAPTURE(json);
  CHECK(parse_json(json).has_value());
  return json;
}

/// What a client puts together of an answer's events.
struct Assembled {
  std::string text;
  std::vector<std::string> arguments;
  std::size_t ended = 0;

  void add(const std::vector<AnswerEvent>& events) {
    for (const AnswerEvent& event : events) {
      if (event.kind == AnswerEvent::Kind::text) text += event.text;
      if (event.kind == AnswerEvent::Kind::call) {
        CHECK(event.call == arguments.size());
        arguments.emplace_back();
      }
      if (event.kind == AnswerEvent::Kind::arguments) arguments.at(event.call) += event.text;
      if (event.kind == AnswerEvent::Kind::end) CHECK(event.call == ended++);
    }
  }
};

std::string call_of(const std::string& function, const std::string& parameters) {
  return "<tool_call>\n<function=" + function + ">\n" + parameters + "</function>\n</tool_call>";
}
std::string parameter(const std::string& name, const std::string& value) {
  return "<parameter=" + name + ">\n" + value + "\n</parameter>\n";
}

}  // namespace

TEST_CASE("arguments get the type of their schema") {
  CHECK(argument("5", R"({"type": "string"})") == R"("5")");
  CHECK(argument("{\"a\": 1}", R"({"type": "string"})") == R"("{\"a\": 1}")");
  CHECK(argument("true", R"({"type": "string"})") == R"("true")");
  CHECK(argument("5", R"({"type": "integer"})") == "5");
  CHECK(argument(" -5\n", R"({"type": "integer"})") == "-5");
  CHECK(argument("5", R"({"type": "number"})") == "5");
  CHECK(argument("0.10", R"({"type": "number"})") == "0.10");
  CHECK(argument("1e3", R"({"type": "number"})") == "1e3");
  CHECK(argument("true", R"({"type": "boolean"})") == "true");
  CHECK(argument("[1, 2]", R"({"type": "array"})") == "[1, 2]");
  CHECK(argument("{\"b\": 1,\n \"a\": 2}", R"({"type": "object"})") == "{\"b\": 1,\n \"a\": 2}");
  CHECK(argument("null", R"({"type": "null"})") == "null");
}

TEST_CASE("what does not fit its schema is a string, for the client to complain about") {
  CHECK(argument("many", R"({"type": "integer"})") == R"("many")");
  CHECK(argument("1.5", R"({"type": "integer"})") == R"("1.5")");
  CHECK(argument("007", R"({"type": "integer"})") == R"("007")");
  CHECK(argument("", R"({"type": "integer"})") == R"("")");
  CHECK(argument("1", R"({"type": "boolean"})") == R"("1")");
  CHECK(argument("[1", R"({"type": "array"})") == R"("[1")");
  CHECK(argument("[1]", R"({"type": "object"})") == R"("[1]")");
  CHECK(argument("NaN", R"({"type": "number"})") == R"("NaN")");
  CHECK(argument("1e999", R"({"type": "number"})") == R"("1e999")");
  CHECK(argument("null", R"({"type": "integer"})") == R"("null")");
}

TEST_CASE("several types: a string if it may be one, else what it parses as") {
  CHECK(argument("5", R"({"type": ["integer", "string"]})") == R"("5")");
  CHECK(argument("5", R"({"type": ["integer", "null"]})") == "5");
  CHECK(argument("null", R"({"type": ["integer", "null"]})") == "null");
  CHECK(argument("null", R"({"type": ["string", "null"]})") == "null");
  CHECK(argument("null", R"({"type": "string"})") == R"("null")");
  CHECK(argument("[1]", R"({"anyOf": [{"type": "array"}, {"type": "null"}]})") == "[1]");
  CHECK(argument("[1]", R"({"oneOf": [{"type": "array"}, {"type": "string"}]})") == R"("[1]")");
  CHECK(argument("2", R"({"allOf": [{"anyOf": [{"type": "number"}]}]})") == "2");
  CHECK(argument("2", R"({"enum": [1, 2, 3]})") == "2");
  CHECK(argument("2", R"({"enum": ["1", "2"]})") == R"("2")");
  CHECK(argument("true", R"({"const": true})") == "true");
}

TEST_CASE("without a usable schema only objects and arrays are parsed") {
  for (const char* schema : {"null", "{}", "true", "[]", "7", R"({"type": 7})", R"({"$ref": "#/x"})",
                             R"({"anyOf": 1, "enum": {}})"}) {
    CAPTURE(schema);
    CHECK(argument("5", schema) == R"("5")");
    CHECK(argument("true", schema) == R"("true")");
    CHECK(argument("[1]", schema) == "[1]");
    CHECK(argument("{}", schema) == "{}");
    CHECK(argument("{x}", schema) == R"("{x}")");
  }
}

TEST_CASE("Python's spellings are understood where they are the value") {
  CHECK(argument("True", R"({"type": "boolean"})") == "true");
  CHECK(argument("False\n", R"({"type": "boolean"})") == "false");
  CHECK(argument("None", R"({"type": ["object", "null"]})") == "null");
  CHECK(argument("None", R"({"type": ["string", "null"]})") == "null");
  CHECK(argument("True", R"({"type": "string"})") == R"("True")");
  CHECK(argument("[True]", R"({"type": "array"})") == R"("[True]")");
}

TEST_CASE("numbers keep their digits") {
  const std::string digits = "123456789012345678901234567890";
  CHECK(argument(digits, R"({"type": "integer"})") == digits);
  CHECK(argument("-" + digits, R"({"type": "integer"})") == "-" + digits);
  CHECK(argument(digits, R"({"type": "number"})") == digits);
  CHECK(argument("0.1234567890123456789012345", R"({"type": "number"})") == "0.1234567890123456789012345");
  CHECK(argument("[" + digits + "]", R"({"type": "array"})") == "[" + digits + "]");
}

TEST_CASE("whatever the bytes, the argument is JSON") {
  using std::string_literals::operator""s;
  CHECK(argument("\xFF\xC3", R"({"type": "string"})") == "\"\xEF\xBF\xBD\xEF\xBF\xBD\"");
  CHECK(argument("[\"\xFF\"]", R"({"type": "array"})") == "\"[\\\"\xEF\xBF\xBD\\\"]\"");
  CHECK(argument("{}\0x"s, R"({"type": "object"})") == R"("{}\u0000x")");
  CHECK(argument("{}\0"s, R"({"type": "object"})") == R"("{}\u0000")");
  CHECK(argument("\xEF\xBB\xBF{}", R"({"type": "object"})") == "\"\xEF\xBB\xBF{}\"");
  CHECK(argument("a\x01\"\\\n\t", R"({"type": "string"})") == R"("a\u0001\"\\\n\t")");
  const std::string deep(5000, '[');
  CHECK(argument(deep, R"({"type": "array"})") == "\"" + deep + "\"");
}

TEST_CASE("an answer collects text and calls") {
  Answer answer({weather_tool()}, false, counted_ids());
  Assembled seen;
  seen.add(answer.push("Let me see.\n\n"));
  seen.add(answer.push(kWeatherCall));
  seen.add(answer.push("\n" + call_of("get_weather", "") + "\n"));
  seen.add(answer.finish());
  CHECK(answer.text() == "Let me see.");
  REQUIRE(answer.calls().size() == 2);
  CHECK(answer.calls()[0].id == "call_1");
  CHECK(answer.calls()[0].name == "get_weather");
  CHECK(answer.calls()[0].arguments == R"({"city": "Berlin", "days": 3})");
  CHECK(answer.calls()[1].id == "call_2");
  CHECK(answer.calls()[1].arguments == "{}");
  CHECK(seen.text == answer.text());
  CHECK(seen.arguments == std::vector<std::string>{answer.calls()[0].arguments, "{}"});
  CHECK(seen.ended == 2);
  CHECK_FALSE(answer.complete());
}

TEST_CASE("without tools everything is text") {
  Answer answer({}, false, counted_ids());
  Assembled seen;
  seen.add(answer.push(kWeatherCall));
  seen.add(answer.push(""));
  seen.add(answer.finish());
  CHECK(answer.text() == kWeatherCall);
  CHECK(seen.text == kWeatherCall);
  CHECK(answer.calls().empty());
}

TEST_CASE("a parameter that comes twice counts once, the first") {
  Answer answer({weather_tool()}, false, counted_ids());
  Assembled seen;
  seen.add(answer.push(call_of("get_weather", parameter("city", "A") + parameter("city", "B") +
                                                  parameter("days", "1") + parameter("days", "2"))));
  seen.add(answer.finish());
  REQUIRE(seen.arguments.size() == 1);
  CHECK(Loose::parse(seen.arguments[0]) == Loose({{"city", "A"}, {"days", 1}}));
  // A new call begins anew.
  seen.add(answer.push(call_of("get_weather", parameter("city", "C"))));
  CHECK(answer.calls().at(1).arguments == R"({"city": "C"})");
}

TEST_CASE("one call: what follows it is dropped, and the answer is complete") {
  Answer answer({weather_tool()}, true, counted_ids());
  Assembled seen;
  seen.add(answer.push("text\n<tool_call>\n<function=get_weather>\n" + parameter("city", "A")));
  CHECK_FALSE(answer.complete());
  seen.add(answer.push("</function>\n</tool_call>\nmore " + kWeatherCall));
  CHECK(answer.complete());
  seen.add(answer.push("and more"));
  seen.add(answer.finish());
  CHECK(answer.calls().size() == 1);
  CHECK(answer.text() == "text");
  CHECK(seen.arguments == std::vector<std::string>{R"({"city": "A"})"});
  CHECK(seen.text == "text");
}

TEST_CASE("a call that the answer was made to begin with") {
  const Tool tool = weather_tool();
  SECTION("of a function of the model's choice") {
    Answer answer({tool}, false, counted_ids(), "<tool_call>\n<function=");
    static_cast<void>(answer.push("get_wea"));
    static_cast<void>(answer.push("ther>\n" + parameter("city", "A") + "</function>\n</tool_call>"));
    static_cast<void>(answer.finish());
    REQUIRE(answer.calls().size() == 1);
    CHECK(answer.calls()[0].name == "get_weather");
    CHECK(answer.calls()[0].arguments == R"({"city": "A"})");
    CHECK(answer.text().empty());
  }
  SECTION("of this function") {
    Answer answer({tool}, false, counted_ids(), "<tool_call>\n<function=get_weather>\n");
    Assembled seen;
    seen.add(answer.push(parameter("days", "2") + "</function>\n</tool_call>"));
    CHECK(seen.arguments == std::vector<std::string>{R"({"days": 2})"});
    CHECK(answer.calls().at(0).name == "get_weather");
  }
  SECTION("and nothing came") {
    Answer answer({tool}, false, counted_ids(), "<tool_call>\n<function=get_weather>\n");
    Assembled seen;
    seen.add(answer.finish());
    CHECK(seen.arguments == std::vector<std::string>{"{}"});
    CHECK(seen.ended == 1);
  }
}

TEST_CASE("arguments are a JSON object, whatever the model writes and however it comes") {
  const std::vector<std::string> pieces = {"<parameter=",
                                           "city",
                                           "days",
                                           "options",
                                           ">\n",
                                           "\n</parameter>\n",
                                           "{\"a\": 1}",
                                           "5",
                                           "\"",
                                           "\\",
                                           "\xFF",
                                           "\xC3\xA4",
                                           "</function>\n",
                                           "</tool_call>",
                                           "<tool_call>\n<function=get_weather>\n",
                                           "True",
                                           std::string(1, '\0'),
                                           "\xEF\xBB\xBF[]"};
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    Answer answer({weather_tool()}, false, counted_ids());
    Assembled seen;
    seen.add(answer.push("<tool_call>\n<function=get_weather>\n<parameter=options>"));
    for (std::size_t n = random() % 20; n > 0; --n) seen.add(answer.push(pieces[random() % pieces.size()]));
    seen.add(answer.finish());
    REQUIRE(seen.ended == answer.calls().size());
    REQUIRE(seen.arguments.size() == answer.calls().size());
    for (std::size_t i = 0; i < seen.arguments.size(); ++i) {
      CAPTURE(seen.arguments[i]);
      REQUIRE(seen.arguments[i] == answer.calls()[i].arguments);
      const Loose json = Loose::parse(seen.arguments[i], nullptr, false);
      REQUIRE(json.is_object());
    }
  }
}

TEST_CASE("JSON: what is accepted") {
  using std::string_literals::operator""s;
  CHECK(parse_json(" {} ").has_value());
  const auto nested = [](int levels, const std::string& middle) {
    return std::string(static_cast<std::size_t>(levels), '[') + middle +
           std::string(static_cast<std::size_t>(levels), ']');
  };
  CHECK(parse_json(nested(kJsonDepthMax, "1")).has_value());
  CHECK(parse_json(nested(kJsonDepthMax + 1, "1")).error().code == stoker::Errc::too_large);
  CHECK(parse_json(nested(kJsonDepthMax + 1, "")).error().code == stoker::Errc::too_large);
  CHECK(parse_json(nested(kJsonDepthMax, "{}")).error().code == stoker::Errc::too_large);
  for (const std::string& text : {""s, "{"s, "{} x"s, "{}\0"s, "[\"\xFF\"]"s, "[\"\\ud800\"]"s, "[1e999]"s,
                                  "{'a': 1}"s, "[1,]"s, "NaN"s, "// c\n{}"s}) {
    CAPTURE(text);
    const auto json = parse_json(text);
    REQUIRE_FALSE(json.has_value());
    CHECK(json.error().code == stoker::Errc::invalid);
    CHECK(json.error().text().find("not valid JSON") != std::string::npos);
  }
}
