// The answer to one request as it grows: text and tool calls, in the terms that all APIs share.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "daemons/gateway/json.h"
#include "daemons/gateway/tool_scanner.h"

namespace stoker::gateway {

/// A function that the model may ask the client to call.
struct Tool {
  std::string name;
  Json parameters;  ///< JSON Schema of its arguments
};

struct ToolCall {
  std::string id;
  std::string name;
  std::string arguments;  ///< JSON text of an object, complete once its call has ended
};

/// What came in addition.
struct AnswerEvent {
  enum class Kind { text, call, arguments, end };
  Kind kind = Kind::text;
  std::size_t call = 0;  ///< but for text: index into Answer::calls()
  std::string text{};    ///< text: more of it; arguments: more of their JSON
};

class Answer {
 public:
  /// Without tools all text is text. `one_call`: what follows the first call is dropped. `new_id` makes ids
  /// of calls, unique in the world. `begins`: what stands before the first text that comes, for the model was
  /// made to go on behind it.
  Answer(std::vector<Tool> tools, bool one_call, std::function<std::string()> new_id,
         std::string begins = {});

  std::vector<AnswerEvent> push(std::string_view text);
  std::vector<AnswerEvent> finish();

  [[nodiscard]] const std::string& text() const { return text_; }
  [[nodiscard]] const std::vector<ToolCall>& calls() const { return calls_; }
  /// Nothing that may still come would be shown.
  [[nodiscard]] bool complete() const { return one_call_ && ended_calls_ > 0; }

 private:
  std::vector<AnswerEvent> take(std::vector<ToolEvent> events);
  std::string parameter_text(const ToolEvent& parameter);
  [[nodiscard]] const Json& schema_of(const std::string& parameter) const;

  std::vector<Tool> tools_;
  bool one_call_;
  std::function<std::string()> new_id_;
  std::string begins_;                  ///< until it has been looked at
  std::optional<ToolScanner> scanner_;  ///< none without tools
  std::string text_;
  std::vector<ToolCall> calls_;
  std::size_t ended_calls_ = 0;
  std::set<std::string> given_;  ///< parameters of the call in progress
};

}  // namespace stoker::gateway
