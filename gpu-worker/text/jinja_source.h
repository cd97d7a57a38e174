// Just enough of Jinja's syntax to recognise a template: its string literals and the code between them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "shm/base/result.h"

namespace stoker {

struct JinjaToken {
  enum class Kind { name, literal, other };
  Kind kind = Kind::other;
  std::string text;       ///< literal: unescaped value; other: one operator character or a number
  std::size_t block = 0;  ///< which {{ }} or {% %} it stands in, counted from 0
};

/// Tokens of all {{ }} and {% %} blocks in order, comments left out. Errc::unsupported if there is text
/// outside blocks other than blanks, or a block that does not end.
[[nodiscard]] Result<std::vector<JinjaToken>> read_jinja(std::string_view source);

}  // namespace stoker
