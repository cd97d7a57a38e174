// JSON of the HTTP APIs. Objects keep the order of their keys: it is part of the prompt that tools become.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "shm/base/result.h"

namespace stoker::gateway {

using Json = nlohmann::ordered_json;

/// Everything here is read and written recursively.
inline constexpr int kJsonDepthMax = 100;

/// Valid JSON in valid UTF-8, at most kJsonDepthMax levels deep. Errc::invalid with the place,
/// Errc::too_large.
[[nodiscard]] Result<Json> parse_json(std::string_view text);
/// A member that is a string; "" if there is none, or another kind.
[[nodiscard]] std::string string_in(const Json& object, const char* key);
/// On one line; bytes that are no UTF-8 become U+FFFD.
[[nodiscard]] std::string to_text(const Json& json);

}  // namespace stoker::gateway
