// Recognises the Qwen3-Coder family of chat templates and takes its fixed texts out of the file.
#pragma once

#include <string>
#include <string_view>

#include "shm/base/result.h"

namespace stoker {

/// What differs between members of the family (model.md 7).
struct TemplateTexts {
  std::string default_system;  ///< system text if tools are given without a system message
  std::string tools_intro;     ///< from the system text to "<tools>" inclusive
  std::string instructions;    ///< from after "</tools>" to "</IMPORTANT>" inclusive
  bool old_style = false;  ///< Qwen3-Coder-30B: scalars as Python prints them, other newlines around results
};

/// Errc::unsupported, naming what does not fit, for any other template: rendering it by these rules would
/// give the model prompts it was not trained on.
[[nodiscard]] Result<TemplateTexts> recognise_template(std::string_view jinja);

}  // namespace stoker
