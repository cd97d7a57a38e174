// A tool call's values are text; the client wants JSON of the types that the tool's schema names.
#pragma once

#include <string>
#include <string_view>

#include "daemons/gateway/json.h"

namespace stoker::gateway {

/// `value` as JSON text. `schema`: JSON Schema of the parameter (any JSON; what cannot be understood says
/// nothing). A parameter that may be a string is one, also where its text looks like JSON. One that may not
/// is parsed, and falls back to a string if it does not parse as a type that is allowed: the client's
/// validation then names the problem to the model. Without a type only objects and arrays are parsed.
[[nodiscard]] std::string argument_json(std::string_view value, const Json& schema);

}  // namespace stoker::gateway
