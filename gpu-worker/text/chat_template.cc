#include "gpu-worker/text/chat_template.h"

#include <algorithm>
#include <initializer_list>

#include "gpu-worker/text/conversation.h"
#include "gpu-worker/text/python_text.h"
#include "gpu-worker/text/text_file.h"

namespace stoker {
namespace {

constexpr std::size_t kTemplateBytesMax = std::size_t{1} << 20;
constexpr std::size_t kTokenizerConfigBytesMax = std::size_t{16} << 20;

/// One rendering. The functions follow the template's blocks in order (model.md 7.1 to 7.4).
class Renderer {
 public:
  explicit Renderer(const TemplateTexts& texts) : texts_(texts) {}

  std::string run(const Conversation& conversation, bool add_generation_prompt) {
    const auto& messages = conversation.messages;
    const bool has_system = messages[0].role == "system";
    if (has_system || !conversation.tools.empty()) {
      out_ += "<|im_start|>system\n";
      out_ += has_system ? messages[0].content : texts_.default_system;
      if (!conversation.tools.empty()) tools(conversation.tools);
      out_ += "<|im_end|>\n";
    }
    const std::size_t first = has_system ? 1 : 0;
    for (std::size_t i = first; i < messages.size(); ++i) {
      if (messages[i].role == "tool") {
        const bool opens = i > first && messages[i - 1].role != "tool";
        const bool closes = i + 1 == messages.size() || messages[i + 1].role != "tool";
        tool_result(messages[i].content, opens, closes);
      } else {
        turn(messages[i]);
      }
    }
    if (add_generation_prompt) out_ += "<|im_start|>assistant\n";
    return std::move(out_);
  }

 private:
  void tools(const std::vector<JsonValue>& list) {
    out_ += texts_.tools_intro;
    for (const JsonValue& tool : list) {
      out_ += "\n<function>\n<name>" + tool.find("name")->text + "</name>";
      description(tool);
      out_ += "\n<parameters>";
      const JsonValue* parameters = tool.find("parameters");
      const JsonValue* properties = parameters == nullptr ? nullptr : parameters->find("properties");
      if (properties != nullptr && properties->is_object()) {
        for (std::size_t i = 0; i < properties->keys.size(); ++i) {
          parameter(properties->keys[i], properties->items[i]);
        }
      }
      if (parameters != nullptr) extra_keys(*parameters, {"type", "properties"});
      out_ += "\n</parameters>";
      extra_keys(tool, {"type", "name", "description", "parameters"});
      out_ += "\n</function>";
    }
    out_ += "\n</tools>" + texts_.instructions;
  }

  void description(const JsonValue& owner) {
    const JsonValue* value = owner.find("description");
    if (value == nullptr) return;
    std::string text;
    append_python_str(text, *value);
    out_ += "\n<description>";
    out_ += python_strip(text);
    out_ += "</description>";
  }

  void parameter(const std::string& name, const JsonValue& fields) {
    out_ += "\n<parameter>\n<name>" + name + "</name>";
    if (const JsonValue* type = fields.find("type"); type != nullptr) {
      out_ += "\n<type>";
      append_python_str(out_, *type);
      out_ += "</type>";
    }
    description(fields);
    extra_keys(fields, {"name", "type", "description"});
    out_ += "\n</parameter>";
  }

  void extra_keys(const JsonValue& object, std::initializer_list<std::string_view> handled) {
    for (std::size_t i = 0; i < object.keys.size(); ++i) {
      const std::string& key = object.keys[i];
      if (std::find(handled.begin(), handled.end(), key) != handled.end()) continue;
      out_ += "\n<" + key + ">";
      value(object.items[i]);
      out_ += "</" + key + ">";
    }
  }

  /// Text as it is, the rest as JSON; the old style prints numbers, booleans and null as Python does.
  void value(const JsonValue& value) {
    const bool container = value.is_array() || value.is_object();
    if (value.is_string() || (texts_.old_style && !container)) {
      append_python_str(out_, value);
    } else {
      append_python_json(out_, value);
    }
  }

  void turn(const Conversation::Message& message) {
    out_ += "<|im_start|>" + message.role;
    if (message.tool_calls.empty()) {
      out_ += "\n" + message.content + "<|im_end|>\n";
      return;
    }
    if (const std::string_view content = python_strip(message.content); !content.empty()) {
      out_ += '\n';
      out_ += content;
      out_ += '\n';
    }
    for (const auto& call : message.tool_calls) {
      out_ += "\n<tool_call>\n<function=" + call.name + ">\n";
      for (std::size_t i = 0; i < call.arguments.keys.size(); ++i) {
        out_ += "<parameter=" + call.arguments.keys[i] + ">\n";
        value(call.arguments.items[i]);
        out_ += "\n</parameter>\n";
      }
      out_ += "</function>\n</tool_call>";
    }
    out_ += "<|im_end|>\n";
  }

  /// `opens`: after a message that is no tool result. A tool message that comes first gets no header; so do
  /// the templates.
  void tool_result(const std::string& content, bool opens, bool closes) {
    if (texts_.old_style) {
      if (opens) out_ += "<|im_start|>user\n";
      out_ += "<tool_response>\n" + content + "\n</tool_response>\n";
    } else {
      if (opens) out_ += "<|im_start|>user";
      out_ += "\n<tool_response>\n" + content + "\n</tool_response>";
    }
    if (closes) out_ += "<|im_end|>\n";
  }

  const TemplateTexts& texts_;
  std::string out_;
};

/// "chat_template" of tokenizer_config.json: one text, or a list of named ones of which "default" counts.
Result<std::string> template_in_config(const std::string& path) {
  STOKER_TRY(const std::string text, read_text_file(path, kTokenizerConfigBytesMax));
  STOKER_TRY(const JsonValue config, parse_json(text, DuplicateKeys::last_wins, path));
  const JsonValue* found = config.find_set("chat_template");
  if (found != nullptr && found->is_array()) {
    const JsonValue* chosen = nullptr;
    for (const JsonValue& entry : found->items) {
      const JsonValue* name = entry.find("name");
      if (name != nullptr && name->text == "default") chosen = entry.find("template");
    }
    found = chosen;
  }
  if (found == nullptr) return fail(Errc::missing, path + " has no chat_template");
  if (!found->is_string()) return fail(Errc::corrupt, path + ": chat_template is no text");
  return found->text;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::load(const std::string& directory) {
  std::string path = directory + "/chat_template.jinja";
  auto text = read_text_file(path, kTemplateBytesMax);
  if (!text && text.error().code == Errc::missing) {
    path = directory + "/tokenizer_config.json";
    text = template_in_config(path);
    if (!text && text.error().code == Errc::missing) {
      return fail(
          Errc::missing,
          directory +
              " has no chat template: neither chat_template.jinja nor chat_template in "
              "tokenizer_config.json; fetch the file from the checkpoint's page, or prompt with raw text");
    }
  }
  if (!text) return tl::unexpected<Error>(std::move(text).error());
  auto parsed = parse(*text);
  if (!parsed) return fail(std::move(parsed).error(), path);
  return parsed;
}

Result<ChatTemplate> ChatTemplate::parse(std::string_view jinja) {
  STOKER_TRY(TemplateTexts texts, recognise_template(jinja));
  return ChatTemplate(std::move(texts));
}

Result<std::string> ChatTemplate::render(std::string_view conversation, bool add_generation_prompt) const {
  STOKER_TRY(const Conversation parsed, parse_conversation(conversation));
  return Renderer(texts_).run(parsed, add_generation_prompt);
}

}  // namespace stoker
