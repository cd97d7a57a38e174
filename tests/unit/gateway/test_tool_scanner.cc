#include "daemons/gateway/tool_scanner.h"

#include <catch2/catch.hpp>
#include <random>

using namespace stoker::gateway;

namespace {

const std::set<std::string> kOffered = {"get_weather", "write_file"};

/// The events of one text as a line: T(...) text, C(name), P(name=value), E. Neighbouring texts are one.
class Scan {
 public:
  void push(std::string_view piece) { add(scanner_.push(piece)); }
  std::string finish() {
    add(scanner_.finish());
    flush();
    return line_;
  }
  std::string so_far() {
    flush();
    return line_;
  }

 private:
  void add(const std::vector<ToolEvent>& events) {
    for (const ToolEvent& event : events) {
      if (event.kind == ToolEvent::Kind::text) {
        CHECK_FALSE(event.text.empty());
        text_ += event.text;
        continue;
      }
      flush();
      if (event.kind == ToolEvent::Kind::call) line_ += "C(" + event.name + ")";
      if (event.kind == ToolEvent::Kind::parameter) line_ += "P(" + event.name + "=" + event.text + ")";
      if (event.kind == ToolEvent::Kind::end) line_ += "E";
    }
  }
  void flush() {
    if (!text_.empty()) line_ += "T(" + text_ + ")";
    text_.clear();
  }
  ToolScanner scanner_{kOffered};
  std::string line_, text_;
};

std::string scan(std::string_view text) {
  Scan scan;
  scan.push(text);
  return scan.finish();
}

struct Case {
  std::string text, events;
};

std::string call(const std::string& body) { return "<tool_call>\n<function=f>\n" + body + "</tool_call>"; }
std::string value(const std::string& value) {
  return call("<parameter=a>\n" + value + "\n</parameter>\n</function>\n");
}

/// What a call may look like, and what it may not.
const std::vector<Case> kShapes = {
    {"", ""},
    {"plain text", "T(plain text)"},
    {" kept \n", "T( kept \n)"},
    {"\n \n", "T(\n \n)"},
    {value("1"), "C(f)P(a=1)E"},
    {"\n\n" + value("1") + "\n\n", "C(f)P(a=1)E"},
    {"before \n\n" + value("1"), "T(before)C(f)P(a=1)E"},
    {value("1") + "\n\n" + value("2"), "C(f)P(a=1)EC(f)P(a=2)E"},
    {value("1") + value("2"), "C(f)P(a=1)EC(f)P(a=2)E"},
    {"a\n" + value("1") + "\n b \n" + value("2") + " c\n", "T(a)C(f)P(a=1)ET(\n b)C(f)P(a=2)ET( c\n)"},
    {call("</function>\n"), "C(f)E"},
    {"<tool_call><function=f><parameter=a>1</parameter></function></tool_call>", "C(f)P(a=1)E"},
    {"<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n2\n</parameter>\n</"
     "function>\n"
     "</tool_call>",
     "C(f)P(a=1)P(b=2)E"},
    // Names.
    {"<tool_call>\n<function=name with blanks, \xC3\xA4.b-c>\n</function>\n</tool_call>",
     "C(name with blanks, \xC3\xA4.b-c)E"},
    {"<tool_call>\n<function=a<b>\n</function>", "T(<tool_call>\n<function=a<b>\n</function>)"},
    {"<tool_call>\n<function=a\nb>\n", "T(<tool_call>\n<function=a\nb>\n)"},
    {"<tool_call>\n<function=>\n", "T(<tool_call>\n<function=>\n)"},
    {"<tool_call>\n<function=" + std::string(256, 'n') + ">x", "C(" + std::string(256, 'n') + ")E"},
    {"<tool_call><function=" + std::string(257, 'n') + ">",
     "T(<tool_call><function=" + std::string(257, 'n') + ">)"},
    {call("<parameter=a<b>\n1\n</parameter>\n</function>\n"), "C(f)E"},
    {call("<parameter=>\n1\n</parameter>\n<parameter=b>2</parameter></function>\n"), "C(f)P(b=2)E"},
    // Without <tool_call>: only functions that were offered.
    {"<function=get_weather>\n<parameter=city>\nX\n</parameter>\n</function>\n</tool_call>",
     "C(get_weather)P(city=X)E"},
    {"so: \n<function=get_weather>\n</function> done", "T(so:)C(get_weather)ET( done)"},
    {"<function=other>\n</function>", "T(<function=other>\n</function>)"},
    {"<function=get_weather2>", "T(<function=get_weather2>)"},
    {"<tool_call>\n<function=other>\n</function>\n</tool_call>", "C(other)E"},
    // <tool_call> that is none.
    {"the tag <tool_call> is used so", "T(the tag <tool_call> is used so)"},
    {"a \n<tool_call>\n{\"name\": 1}</tool_call>", "T(a \n<tool_call>\n{\"name\": 1}</tool_call>)"},
    {"<tool_call>" + value("1"), "T(<tool_call>)C(f)P(a=1)E"},
    {value("1") + "\n<tool_call> x", "C(f)P(a=1)ET(\n<tool_call> x)"},
    {"<tool_call>", "T(<tool_call>)"},
    {"x <tool_cal", "T(x <tool_cal)"},
    {"x <<tool_call><function=f></function></tool_call>", "T(x <)C(f)E"},
};

/// Values are not escaped, and need not end well.
const std::vector<Case> kValues = {
    {value("a </parameter> b"), "C(f)P(a=a </parameter> b)E"},
    {value("a\n</parameter>\n</parameter>"), "C(f)P(a=a\n</parameter>\n</parameter>)E"},
    {value("<function=x> <tool_call> </tool_call> </function>"),
     "C(f)P(a=<function=x> <tool_call> </tool_call> </function>)E"},
    {value("if (a<b && c>d) <html>\n<p class=\"x\">&amp;</p></html>"),
     "C(f)P(a=if (a<b && c>d) <html>\n<p class=\"x\">&amp;</p></html>)E"},
    {value("\"</parameter>\" + x\n<parameterised/>"), "C(f)P(a=\"</parameter>\" + x\n<parameterised/>)E"},
    {value("</parameter"), "C(f)P(a=</parameter)E"},
    {value("<parameter=b>"), "C(f)P(a=<parameter=b>)E"},
    {value("\xF0\x9F\x98\x80 \xE2\x82\xAC"), "C(f)P(a=\xF0\x9F\x98\x80 \xE2\x82\xAC)E"},
    // Exactly one newline at either end.
    {value(""), "C(f)P(a=)E"},
    {value("\n x \n"), "C(f)P(a=\n x \n)E"},
    {call("<parameter=a></parameter></function>"), "C(f)P(a=)E"},
    {call("<parameter=a>\n</parameter></function>"), "C(f)P(a=)E"},
    {call("<parameter=a> 1 </parameter></function>"), "C(f)P(a= 1 )E"},
    // Closing tags that are missing.
    {"<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</tool_call>", "C(f)P(a=1)E"},
    {"<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n", "C(f)P(a=1)E"},
    {"<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</func", "C(f)P(a=1)E"},
    {"<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function> then", "C(f)P(a=1)ET( then)"},
    {"<tool_call>\n<function=f>\n<parameter=a>\n1\n</function>\n</tool_call>\n", "C(f)P(a=1)E"},
    {"<tool_call>\n<function=f>\n<parameter=a>\n1\n</tool_call>", "C(f)P(a=1)E"},
    {"<tool_call>\n<function=f>\n<parameter=a>\n1 and mo", "C(f)P(a=1 and mo)E"},
    {"<tool_call>\n<function=f>\n<parameter=a>", "C(f)P(a=)E"},
    {"<tool_call>\n<function=f>\n<parameter=a", "C(f)E"},
    {"<tool_call>\n<function=f>", "C(f)E"},
    {"<tool_call>\n<function=f", "T(<tool_call>\n<function=f)"},
    {"<tool_call>\n<function=f>\n<tool_call>\n<function=g>\n</function>\n</tool_call>", "C(f)EC(g)E"},
    {"<tool_call>\n<function=f>\njunk <b> junk\n<parameter=a>1</parameter>junk</function>",
     "C(f)P(a=1</parameter>junk)E"},
    {"<tool_call>\n<function=f>\njunk <b> junk\n<parameter=a>1</parameter></function>", "C(f)P(a=1)E"},
};

std::vector<Case> all_cases() {
  std::vector<Case> cases = kShapes;
  cases.insert(cases.end(), kValues.begin(), kValues.end());
  return cases;
}

}  // namespace

TEST_CASE("tool calls are found, and nothing else") {
  for (const Case& c : kShapes) {
    CAPTURE(c.text);
    CHECK(scan(c.text) == c.events);
  }
}

TEST_CASE("values are raw text, and calls that do not end well end with the answer") {
  for (const Case& c : kValues) {
    CAPTURE(c.text);
    CHECK(scan(c.text) == c.events);
  }
}

TEST_CASE("what is found does not depend on how the text is cut") {
  std::mt19937 random(11);
  for (const Case& c : all_cases()) {
    CAPTURE(c.text);
    for (int round = 0; round < 60; ++round) {
      CAPTURE(round);
      const std::size_t longest = round == 0 ? 1 : 1 + random() % 30;
      Scan scan;
      for (std::size_t at = 0; at < c.text.size();) {
        const std::size_t size = round == 0 ? 1 : 1 + random() % longest;
        scan.push(std::string_view(c.text).substr(at, size));
        at += size;
      }
      REQUIRE(scan.finish() == c.events);
    }
  }
}

TEST_CASE("texts made of pieces of tags: cuts make no difference, and every call ends") {
  const std::vector<std::string> pieces = {"<tool_call>",
                                           "</tool_call>",
                                           "<function=f>",
                                           "<function=get_weather>",
                                           "</function>",
                                           "<parameter=a>",
                                           "</parameter>",
                                           "\n",
                                           " ",
                                           "x",
                                           "<",
                                           ">",
                                           "<tool",
                                           "_call>",
                                           "</",
                                           "parameter>",
                                           "<function=",
                                           "=a>"};
  std::mt19937 random(5);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    Scan cut;
    for (std::size_t n = random() % 14; n > 0; --n) {
      const std::string& piece = pieces[random() % pieces.size()];
      text += piece;
      const std::size_t middle = random() % (piece.size() + 1);
      cut.push(std::string_view(piece).substr(0, middle));
      cut.push(std::string_view(piece).substr(middle));
    }
    CAPTURE(text);
    REQUIRE(cut.finish() == scan(text));
  }
}

TEST_CASE("text is shown as soon as it cannot be a call's") {
  Scan scan;
  scan.push("Hello ");
  CHECK(scan.so_far() == "T(Hello)");  // the blank may stand before a call
  scan.push("you <");
  CHECK(scan.so_far() == "T(Hello)T( you)");
  scan.push("b>");
  CHECK(scan.so_far() == "T(Hello)T( you)T( <b>)");
}

TEST_CASE("a parameter is told when its value has ended, not later") {
  Scan scan;
  scan.push("<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n");
  CHECK(scan.so_far() == "C(f)");
  scan.push("<parameter=");
  CHECK(scan.so_far() == "C(f)P(a=1)");
  scan.push("b>\n2\n</parameter>\n</function>");
  CHECK(scan.so_far() == "C(f)P(a=1)P(b=2)E");
}

TEST_CASE("scanning is linear, byte by byte as well") {
  constexpr std::size_t kBytes = 1U << 20;
  const auto push_bytes = [](Scan& scan, char byte) {
    const std::string one(1, byte);
    for (std::size_t i = 0; i < kBytes; ++i) scan.push(one);
  };
  SECTION("a long value") {
    Scan scan;
    scan.push("<tool_call>\n<function=f>\n<parameter=a>\n");
    push_bytes(scan, 'v');
    scan.push("\n</parameter>\n</function>\n</tool_call>");
    CHECK(scan.finish() == "C(f)P(a=" + std::string(kBytes, 'v') + ")E");
  }
  SECTION("blanks for ever") {
    Scan scan;
    push_bytes(scan, '\n');
    scan.push("x");
    CHECK(scan.finish() == "T(" + std::string(kBytes, '\n') + "x)");
  }
  SECTION("blanks behind <tool_call>") {
    Scan scan;
    scan.push("<tool_call>");
    push_bytes(scan, ' ');
    scan.push("<function=f>");
    CHECK(scan.finish() == "C(f)E");
  }
  SECTION("blanks behind a value and behind a function") {
    Scan scan;
    scan.push("<tool_call><function=f><parameter=a>1</parameter>");
    push_bytes(scan, ' ');
    scan.push("</function>");
    push_bytes(scan, ' ');
    scan.push("</tool_call>");
    CHECK(scan.finish() == "C(f)P(a=1)E");
  }
  SECTION("text, and beginnings of tags") {
    Scan scan;
    push_bytes(scan, '<');
    CHECK(scan.finish() == "T(" + std::string(kBytes, '<') + ")");
  }
}
