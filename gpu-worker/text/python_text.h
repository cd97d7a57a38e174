// How Python prints values: Jinja templates are rendered by Python upstream, and its spelling of numbers,
// lists and blanks is part of the prompt.
#pragma once

#include <string>
#include <string_view>

#include "gpu-worker/text/json_value.h"

namespace stoker {

/// json.dumps(value, ensure_ascii=False): ", " and ": " between, keys in order. This is Hugging Face's
/// `tojson`.
void append_python_json(std::string& out, const JsonValue& value);
/// str(value): None, True, 1.5, text as it is, lists and objects as repr() prints them.
void append_python_str(std::string& out, const JsonValue& value);
/// text.strip(): blanks as Python's str.isspace sees them. `text` is valid UTF-8.
[[nodiscard]] std::string_view python_strip(std::string_view text);

}  // namespace stoker
