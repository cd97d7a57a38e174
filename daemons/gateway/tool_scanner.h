// Finds Qwen3-Coder's tool calls in streamed text:
//
//   <tool_call>
//   <function=NAME>
//   <parameter=NAME>
//   VALUE, raw and possibly many lines
//   </parameter>
//   </function>
//   </tool_call>
//
// It looks like XML and is not: values are not escaped, and source code in them may hold any of these tags.
// So
//   - </parameter> ends a value only where <parameter=, </function>, </tool_call> or the end of the answer
//   follows (be it within one of these);
//   - exactly one newline is taken off a value's beginning, and one off its end;
//   - a call without <tool_call> counts if the function is one of the tools that were offered;
//   - what is still open when the answer ends is closed there;
//   - <tool_call> without <function=NAME> behind it is text like any other.
// White space before a call, and behind the last one, belongs to nothing; before text it is part of the text.
#pragma once

#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace stoker::gateway {

struct ToolEvent {
  enum class Kind { text, call, parameter, end };
  Kind kind = Kind::text;
  std::string name{};  ///< call: of the function; parameter: of the parameter
  std::string text{};  ///< text: for people; parameter: the value
};

class ToolScanner {
 public:
  /// `tools`: names of the functions that were offered.
  explicit ToolScanner(const std::set<std::string>& tools);

  /// Events do not depend on how the text is cut into pushes, but for the cuts within text events.
  std::vector<ToolEvent> push(std::string_view text);
  /// The answer is over: what was held back, and the end of a call that is still open.
  std::vector<ToolEvent> finish();

 private:
  enum class State { text, opened, body, value, closed };
  bool step();
  bool in_text();
  bool in_opened();
  bool in_body();
  bool in_value();
  bool in_closed();
  void emit_text(std::size_t end);
  void begin_call(std::string name, std::size_t consumed);
  void end_call(std::size_t consumed, State next);
  void end_value(std::size_t end, std::size_t consumed);
  void consume(std::size_t bytes);
  [[nodiscard]] bool may_become(std::size_t at, std::string_view tag) const;
  [[nodiscard]] std::size_t skip_blanks(std::size_t at);

  std::vector<std::string> bare_;  ///< "<function=NAME>" of every tool
  std::vector<ToolEvent> events_;
  std::string buffer_;         ///< what no event has been made of
  std::size_t looked_at_ = 0;  ///< value: no end begins before this; text: only blanks are before this
  std::size_t blanks_from_ = 0, blanks_to_ = 0;  ///< what skip_blanks() has passed
  std::string blanks_;  ///< taken off before <tool_call>, should it turn out to be text
  std::string parameter_;
  State state_ = State::text;
  bool behind_call_ = false;  ///< no text since the last call
  bool at_end_ = false;
};

}  // namespace stoker::gateway
