// JSON from files that may be hostile: one place that knows nlohmann's exceptions.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "shm/base/result.h"

namespace stoker {

inline constexpr int kJsonDepthMax = 32;

/// Parses `text` whole. Refuses bad syntax, invalid UTF-8, duplicate keys and nesting beyond kJsonDepthMax.
/// `what` names the input in errors ("config.json").
Result<nlohmann::json> parse_json(std::string_view text, const std::string& what);

/// A value shortened to what fits an error message, plain ASCII.
std::string json_excerpt(const nlohmann::json& value);

/// Other people's text (exception messages, names from files) without control or non-ASCII bytes.
std::string printable(std::string_view text, std::size_t bytes_max = 200);

}  // namespace stoker
