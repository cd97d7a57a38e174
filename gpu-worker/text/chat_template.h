// Renders a conversation with the Qwen3-Coder chat template (model.md 7).
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "gpu-worker/text/template_family.h"
#include "shm/base/result.h"

namespace stoker {

class ChatTemplate {
 public:
  /// From a checkpoint directory: chat_template.jinja, or chat_template in tokenizer_config.json. The fixed
  /// instruction block is taken from the file. Errc::unsupported, with the remedy, for another family.
  static Result<ChatTemplate> load(const std::string& directory);
  static Result<ChatTemplate> parse(std::string_view jinja);
  /// `conversation`: JSON {"messages": [...], "tools": [...]} in OpenAI's shape; other keys of a request are
  /// not looked at. Before rendering, as servers do: a list of text parts becomes its texts joined by
  /// newlines, content null or absent becomes "", and arguments given as JSON text are parsed ("" counts as
  /// {}). Errors name the message index and the key.
  [[nodiscard]] Result<std::string> render(std::string_view conversation, bool add_generation_prompt) const;

 private:
  explicit ChatTemplate(TemplateTexts texts) : texts_(std::move(texts)) {}
  TemplateTexts texts_;
};

}  // namespace stoker
