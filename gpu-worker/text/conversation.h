// A conversation in OpenAI's shape, checked and brought into the form that chat templates expect.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "gpu-worker/text/json_value.h"
#include "shm/base/result.h"

namespace stoker {

struct Conversation {
  struct ToolCall {
    std::string name;
    JsonValue arguments;  ///< an object; empty if none were given
  };
  struct Message {
    std::string role;
    std::string content;
    std::vector<ToolCall> tool_calls;
  };
  std::vector<Message> messages;  ///< at least one
  std::vector<JsonValue> tools;   ///< the inner function objects; each has a name
};

/// See ChatTemplate::render for what is accepted. Errc::invalid names the place ("messages[3].content").
[[nodiscard]] Result<Conversation> parse_conversation(std::string_view json);

}  // namespace stoker
