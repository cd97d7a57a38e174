#include "gpu-worker/text/conversation.h"

#include "gpu-worker/text/python_text.h"

namespace stoker {
namespace {

tl::unexpected<Error> invalid(const std::string& what) { return fail(Errc::invalid, what); }

Result<std::string> read_content(const JsonValue* content, const std::string& where) {
  if (content == nullptr) return std::string();
  if (content->is_string()) return content->text;
  if (!content->is_array()) return invalid(where + " is neither text nor a list of text parts");
  std::string joined;
  for (std::size_t i = 0; i < content->items.size(); ++i) {
    const JsonValue& part = content->items[i];
    const std::string part_name = where + "[" + std::to_string(i) + "]";
    const JsonValue* type = part.find("type");
    if (type == nullptr || type->text != "text") {
      return fail(Errc::unsupported,
                  part_name + " is not a part of type \"text\"; this model reads text only");
    }
    const JsonValue* text = part.find("text");
    if (text == nullptr || !text->is_string()) return invalid(part_name + ".text is no text");
    if (i > 0) joined += '\n';
    joined += text->text;
  }
  return joined;
}

Result<JsonValue> read_arguments(const JsonValue* arguments, const std::string& where) {
  JsonValue value{.kind = JsonValue::Kind::object};
  if (arguments == nullptr) return value;
  if (!arguments->is_string()) {
    value = *arguments;
  } else if (!python_strip(arguments->text).empty()) {
    auto parsed = parse_json(arguments->text, DuplicateKeys::last_wins, where);
    if (!parsed) return invalid(parsed.error().message);
    value = *std::move(parsed);
  }
  if (!value.is_object()) return invalid(where + " is no object of argument names and values");
  return value;
}

Result<std::vector<Conversation::ToolCall>> read_tool_calls(const JsonValue& list, const std::string& where) {
  if (!list.is_array()) return invalid(where + " is no list");
  std::vector<Conversation::ToolCall> calls;
  for (std::size_t i = 0; i < list.items.size(); ++i) {
    const JsonValue* inner = list.items[i].find_set("function");
    const JsonValue& call = inner == nullptr ? list.items[i] : *inner;
    const std::string call_name =
        where + "[" + std::to_string(i) + "]" + (inner == nullptr ? "" : ".function");
    const JsonValue* name = call.find("name");
    if (name == nullptr || !name->is_string()) return invalid(call_name + ".name is no text");
    STOKER_TRY(JsonValue arguments, read_arguments(call.find_set("arguments"), call_name + ".arguments"));
    calls.push_back({name->text, std::move(arguments)});
  }
  return calls;
}

Result<Conversation::Message> read_message(const JsonValue& value, const std::string& where) {
  if (!value.is_object()) return invalid(where + " is no object");
  const JsonValue* role = value.find("role");
  if (role == nullptr || !role->is_string()) return invalid(where + ".role is no text");
  Conversation::Message message{.role = role->text, .content = {}, .tool_calls = {}};
  STOKER_TRY(message.content, read_content(value.find_set("content"), where + ".content"));
  const JsonValue* calls = value.find_set("tool_calls");
  if (calls != nullptr && message.role == "assistant") {
    STOKER_TRY(message.tool_calls, read_tool_calls(*calls, where + ".tool_calls"));
  }
  return message;
}

Result<std::vector<JsonValue>> read_tools(const JsonValue* list) {
  std::vector<JsonValue> tools;
  if (list == nullptr) return tools;
  if (!list->is_array()) return invalid("tools is no list");
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const JsonValue* inner = list->items[i].find_set("function");
    const JsonValue& tool = inner == nullptr ? list->items[i] : *inner;
    const JsonValue* name = tool.find("name");
    if (name == nullptr || !name->is_string()) {
      return invalid("tools[" + std::to_string(i) + "]" + (inner == nullptr ? "" : ".function") +
                     ".name is no text");
    }
    tools.push_back(tool);
  }
  return tools;
}

}  // namespace

Result<Conversation> parse_conversation(std::string_view json) {
  auto parsed = parse_json(json, DuplicateKeys::last_wins, "conversation");
  if (!parsed) return invalid(parsed.error().message);
  const JsonValue* messages = parsed->find("messages");
  if (messages == nullptr || !messages->is_array() || messages->items.empty()) {
    return invalid("conversation: messages is no list of at least one message");
  }
  Conversation conversation;
  for (std::size_t i = 0; i < messages->items.size(); ++i) {
    STOKER_TRY(auto message, read_message(messages->items[i], "messages[" + std::to_string(i) + "]"));
    conversation.messages.push_back(std::move(message));
  }
  STOKER_TRY(conversation.tools, read_tools(parsed->find_set("tools")));
  return conversation;
}

}  // namespace stoker
