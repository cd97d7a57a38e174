// Renders a conversation with the Qwen3-Coder chat template (model.md 7).
#pragma once

#include <string>
#include <string_view>

#include "shm/base/result.h"

namespace stoker {

class ChatTemplate {
 public:
  /// From a checkpoint directory: chat_template.jinja, or chat_template in tokenizer_config.json. The fixed
  /// instruction block is taken from the file. Errc::unsupported, with the remedy, for another family.
  static Result<ChatTemplate> load(const std::string& directory);
  static Result<ChatTemplate> parse(std::string_view jinja);
  /// `conversation`: JSON {"messages": [...], "tools": [...]} in OpenAI's shape. Errors name the message
  /// index and the key.
  [[nodiscard]] Result<std::string> render(std::string_view conversation, bool add_generation_prompt) const;

 private:
  std::string instructions_;
  bool old_style_ = false;  ///< the 30B family's newlines and scalars
};

}  // namespace stoker
