#include "daemons/gateway/tool_arguments.h"

#include <algorithm>
#include <set>

namespace stoker::gateway {
namespace {

/// How deep schemas are nested in each other before we stop looking for types.
constexpr int kSchemaDepth = 8;

const char* type_of(const Json& value) {
  switch (value.type()) {
    case Json::value_t::string:
      return "string";
    case Json::value_t::boolean:
      return "boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return "integer";
    case Json::value_t::number_float:
      return "number";
    case Json::value_t::object:
      return "object";
    case Json::value_t::array:
      return "array";
    default:
      return "null";
  }
}

/// Names of the types that `schema` allows; none: it does not say.
void collect_types(const Json& schema, std::set<std::string>& types, int depth) {
  if (!schema.is_object() || depth > kSchemaDepth) return;
  if (const auto type = schema.find("type"); type != schema.end()) {
    if (type->is_string()) types.insert(type->get<std::string>());
    if (type->is_array())
      for (const Json& one : *type)
        if (one.is_string()) types.insert(one.get<std::string>());
    return;
  }
  if (const auto values = schema.find("enum"); values != schema.end() && values->is_array())
    for (const Json& value : *values) types.insert(type_of(value));
  if (const auto value = schema.find("const"); value != schema.end()) types.insert(type_of(*value));
  for (const char* key : {"anyOf", "oneOf", "allOf"})
    if (const auto parts = schema.find(key); parts != schema.end() && parts->is_array())
      for (const Json& part : *parts) collect_types(part, types, depth + 1);
}

/// `text`: what `value` was parsed from.
bool allowed(const Json& value, std::string_view text, const std::set<std::string>& types) {
  std::string type = type_of(value);
  // An integer beyond 64 bits is a float to the parser.
  if (type == "number" && text.find_first_not_of("-0123456789") == std::string_view::npos) type = "integer";
  if (types.contains(type)) return true;
  return type == "integer" && types.contains("number");
}

std::string_view trimmed(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

/// Python's spelling, which models trained on it write.
std::string_view as_json_spells(std::string_view text) {
  if (text == "True") return "true";
  if (text == "False") return "false";
  return text == "None" ? "null" : text;
}

}  // namespace

std::string argument_json(std::string_view value, const Json& schema) {
  std::set<std::string> types;
  collect_types(schema, types, 0);
  const std::string text = to_text(Json(value));
  const std::string_view bare = as_json_spells(trimmed(value));
  if (types.contains("string")) return bare == "null" && types.contains("null") ? "null" : text;
  if (types.empty()) types = {"object", "array"};
  // The parser skips a byte order mark, which is no JSON in the middle of a text.
  if (bare.starts_with("\xEF\xBB\xBF")) return text;
  const auto parsed = parse_json(bare);
  // The text itself, not what we would print: numbers keep all their digits.
  return parsed && allowed(*parsed, bare, types) ? std::string(bare) : text;
}

}  // namespace stoker::gateway
