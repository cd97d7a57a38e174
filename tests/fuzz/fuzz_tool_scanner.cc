// The text of an answer, cut at places that the first byte chooses. Calls nest as the APIs need it, nothing
// depends on the cuts, no text is made up, and arguments are JSON objects.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "daemons/gateway/answer.h"
#include "daemons/gateway/tool_scanner.h"

namespace {

using namespace stoker::gateway;

void require(bool promise) {
  if (!promise) std::abort();
}

/// What the events say, whatever texts were cut into.
class Story {
 public:
  void add(const std::vector<ToolEvent>& events) {
    for (const ToolEvent& event : events) {
      const bool begins = event.kind == ToolEvent::Kind::call, is_text = event.kind == ToolEvent::Kind::text;
      require(in_call_ != (begins || is_text));
      if (begins) in_call_ = true;
      if (event.kind == ToolEvent::Kind::end) in_call_ = false;
      require(is_text || event.kind == ToolEvent::Kind::end || !event.name.empty());
      require(!is_text || !event.text.empty());
      if (!is_text || !after_text_) told_ += "\x01" + std::to_string(static_cast<int>(event.kind));
      after_text_ = is_text;
      told_ += event.name + "\x02" + event.text;
      if (is_text) told_.erase(told_.size() - event.text.size() - 1, 1);
      bytes_ += event.name.size() + event.text.size();
    }
  }
  [[nodiscard]] const std::string& ended(std::size_t input_bytes) const {
    require(!in_call_);
    require(bytes_ <= input_bytes);
    return told_;
  }

 private:
  std::string told_;
  std::size_t bytes_ = 0;
  bool in_call_ = false, after_text_ = false;
};

Json schema() {
  return {
      {"properties",
       {{"a", {{"type", "integer"}}}, {"b", {{"type", {"object", "null"}}}}, {"c", {{"type", "string"}}}}}};
}

/// Pieces of pseudo-random sizes.
template <class Push>
void cut(std::string_view text, std::uint8_t how, Push push) {
  std::uint32_t state = how;
  while (!text.empty()) {
    state = state * 1664525 + 1013904223;
    const std::size_t size = how == 0 ? 1 : 1 + (state >> 24) % (1 + how % 32);
    push(text.substr(0, size));
    text.remove_prefix(std::min(size, text.size()));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
  const std::set<std::string> tools = {"f", "g"};
  ToolScanner whole(tools), pieces(tools);
  Story at_once, piecewise;
  at_once.add(whole.push(text));
  at_once.add(whole.finish());
  cut(text, data[0], [&](std::string_view piece) { piecewise.add(pieces.push(piece)); });
  piecewise.add(pieces.finish());
  require(at_once.ended(text.size()) == piecewise.ended(text.size()));

  Answer answer({{.name = "f", .parameters = schema()}, {.name = "g", .parameters = 7}}, (data[0] & 1) != 0,
                [] { return std::string("id"); });
  std::string arguments, shown;
  const auto take = [&](const std::vector<AnswerEvent>& events) {
    for (const AnswerEvent& event : events) {
      require(event.kind == AnswerEvent::Kind::text || event.call < answer.calls().size());
      if (event.kind == AnswerEvent::Kind::text) shown += event.text;
      if (event.kind == AnswerEvent::Kind::arguments) arguments += event.text;
    }
  };
  cut(text, data[0], [&](std::string_view piece) { take(answer.push(piece)); });
  take(answer.finish());
  require(shown == answer.text());
  for (const ToolCall& call : answer.calls()) {
    const auto json = nlohmann::json::parse(call.arguments, nullptr, false);
    require(json.is_object());
    require(arguments.starts_with(call.arguments));
    arguments.erase(0, call.arguments.size());
  }
  require(arguments.empty());
  return 0;
}
