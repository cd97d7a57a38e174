#include "gpu-worker/text/chat_template.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "tests/unit/text/test_data.h"

namespace stoker {
namespace {

using nlohmann::json;

ChatTemplate fixture(const std::string& name = "chat_template.jinja") {
  auto chat = ChatTemplate::parse(test::read_data(name));
  if (!chat) FAIL(chat.error().text());
  return std::move(*chat);
}

TEST_CASE("prompts equal Jinja2's rendering") {
  std::map<std::string, ChatTemplate> templates;
  const auto rows = test::read_json_lines("golden_prompts.jsonl");
  REQUIRE(rows.size() == 80);
  for (const json& row : rows) {
    const auto name = row["template"].get<std::string>();
    const ChatTemplate& chat = templates.try_emplace(name, fixture(name)).first->second;
    const auto text = chat.render(row["conversation"].get<std::string>(), row["generate"].get<bool>());
    CAPTURE(row["conversation"].get<std::string>());
    REQUIRE(text.has_value());
    CHECK(*text == row["text"].get<std::string>());
  }
}

TEST_CASE("a conversation without tools and system message has no system turn") {
  const auto text = fixture().render(R"({"messages":[{"role":"user","content":"Hi"}]})", true);
  CHECK(text.value() == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

struct BadConversation {
  const char* text;
  const char* words;
};

TEST_CASE("a malformed conversation is refused with the place") {
  const BadConversation cases[] = {
      {"{", "conversation"},
      {"[]", "messages is no list"},
      {R"({"messages":[]})", "at least one"},
      {R"({"messages":[{"role":"user","content":"a"},{"content":"b"}]})", "messages[1].role"},
      {R"({"messages":[{"role":"user","content":5}]})", "messages[0].content"},
      {R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})", "messages[0].content[0]"},
      {R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":{}}}]}]})",
       "messages[0].tool_calls[0].function.name"},
      {R"({"messages":[{"role":"assistant","tool_calls":[{"name":"f","arguments":"{"}]}]})",
       "messages[0].tool_calls[0].arguments"},
      {R"({"messages":[{"role":"assistant","tool_calls":[{"name":"f","arguments":"[1]"}]}]})",
       "messages[0].tool_calls[0].arguments is no object"},
      {R"({"messages":[{"role":"user","content":"a"}],"tools":{}})", "tools is no list"},
      {R"({"messages":[{"role":"user","content":"a"}],"tools":[{"function":{}}]})", "tools[0].function.name"},
  };
  const ChatTemplate chat = fixture();
  for (const BadConversation& c : cases) {
    CAPTURE(c.text);
    const auto text = chat.render(c.text, true);
    REQUIRE_FALSE(text.has_value());
    CAPTURE(text.error().message);
    CHECK(text.error().message.find(c.words) != std::string::npos);
  }
}

TEST_CASE("nesting beyond the limit is refused, not recursed into") {
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  const auto text =
      fixture().render(R"({"messages":[{"role":"user","content":"a"}],"x":)" + deep + "}", true);
  REQUIRE_FALSE(text.has_value());
  CHECK(text.error().message.find("nested deeper") != std::string::npos);
}

TEST_CASE("templates of other families are refused") {
  struct Change {
    const char* from;
    const char* to;
  };
  // Each would render something else than this code does.
  const Change changes[] = {
      {"messages[0][\"role\"]", "enable_thinking"},
      {"\"\\n<parameters>\"", "\"\\n<arguments>\""},
      {"[\"type\", \"properties\"]", "[\"type\", \"properties\", \"required\"]"},
      {"\"\\n<tool_response>\\n\"", "\"<tool_response>\\n\""},
      {"args_value if args_value is string else args_value | tojson | safe", "args_value"},
      {"\"<|im_start|>assistant\\n\"", "\"<|im_start|>assistant\\n<think>\\n\""},
      {"{%- for message in loop_messages %}", "{%- for message in loop_messages %}Hello"},
      {"</IMPORTANT>' }}", "</IMPORTANT> bye' }}"},
      {"# Tools", "# Functions"},
      {"{%- endif %}", "{%- endif"},
      {"\"<|im_end|>\\n\"", "\"<|im_end|>\\n\" ~ \"Be nice.\""},
  };
  const std::string good = test::read_data("chat_template.jinja");
  for (const Change& change : changes) {
    CAPTURE(change.from);
    const auto chat = ChatTemplate::parse(test::replaced(good, change.from, change.to));
    REQUIRE_FALSE(chat.has_value());
    CHECK(chat.error().code == Errc::unsupported);
    CHECK(chat.error().message.find("not of the Qwen3-Coder family") != std::string::npos);
  }
}

/// An empty directory that is gone at the end.
struct ScratchDirectory {
  ScratchDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stoker-text-XXXXXX").string();
    REQUIRE(::mkdtemp(pattern.data()) != nullptr);
    path = pattern;
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path + "/" + name) << text;
  }
  std::string path;
};

TEST_CASE("the template is found in either file of a checkpoint") {
  const std::string conversation = R"({"messages":[{"role":"user","content":"Hi"}],"tools":[{"name":"f"}]})";
  const std::string expected = fixture().render(conversation, true).value();
  const std::string source = test::read_data("chat_template.jinja");
  ScratchDirectory directory;

  const auto none = ChatTemplate::load(directory.path);
  REQUIRE_FALSE(none.has_value());
  CHECK(none.error().code == Errc::missing);
  CHECK(none.error().message.find("chat_template.jinja") != std::string::npos);

  directory.write("tokenizer_config.json", json{{"chat_template", source}}.dump());
  CHECK(ChatTemplate::load(directory.path).value().render(conversation, true).value() == expected);
  const json named = {{{"name", "other"}, {"template", "x"}}, {{"name", "default"}, {"template", source}}};
  directory.write("tokenizer_config.json", json{{"chat_template", named}}.dump());
  CHECK(ChatTemplate::load(directory.path).value().render(conversation, true).value() == expected);

  directory.write("chat_template.jinja", "{{ bos_token }}");
  const auto other = ChatTemplate::load(directory.path);
  REQUIRE_FALSE(other.has_value());
  CHECK(other.error().message.find(directory.path + "/chat_template.jinja") != std::string::npos);
  directory.write("chat_template.jinja", source);
  CHECK(ChatTemplate::load(directory.path).value().render(conversation, true).value() == expected);
}

}  // namespace
}  // namespace stoker
