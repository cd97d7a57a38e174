#include "daemons/gateway/fields.h"

#include <algorithm>

#include "daemons/common/messages.h"

namespace stoker::gateway {

Fields::Fields(const Json& json) : json_(json) {
  if (!json.is_object()) problem("", "the body is not a JSON object");
}

const Json* Fields::find(const char* key) const {
  if (!json_.is_object()) return nullptr;
  const auto found = json_.find(key);
  return found == json_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<double> Fields::number(const char* key, double least, double most) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= least && number <= most) return number;
  }
  problem(key, std::string(key) + " must be a number from " + to_text(Json(least)) + " to " +
                   to_text(Json(most)) + ", not " + to_text(*value).substr(0, 100));
  return std::nullopt;
}

std::optional<std::uint64_t> Fields::integer(const char* key, std::uint64_t least, std::uint64_t most) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) {
    const auto number = value->get<std::uint64_t>();
    if (number >= least && number <= most) return number;
  }
  problem(key, std::string(key) + " must be a whole number from " + std::to_string(least) + " to " +
                   std::to_string(most) + ", not " + to_text(*value).substr(0, 100));
  return std::nullopt;
}

std::optional<std::string> Fields::string(const char* key) {
  const Json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  problem(key, std::string(key) + " must be a string");
  return std::nullopt;
}

std::vector<std::string> Fields::strings(const char* key) {
  std::vector<std::string> strings;
  const Json* value = find(key);
  if (value == nullptr) return strings;
  if (value->is_string()) return {value->get<std::string>()};
  const auto is_string = [](const Json& one) { return one.is_string(); };
  if (!value->is_array() || !std::all_of(value->begin(), value->end(), is_string)) {
    problem(key, std::string(key) + " must be a string or a list of strings");
    return strings;
  }
  for (const Json& one : *value) strings.push_back(one.get<std::string>());
  return strings;
}

bool Fields::flag(const char* key, bool otherwise) {
  const Json* value = find(key);
  if (value == nullptr) return otherwise;
  if (value->is_boolean()) return value->get<bool>();
  problem(key, std::string(key) + " must be true or false");
  return otherwise;
}

void Fields::cannot(const char* key, const Json& harmless, const std::string& why) {
  const Json* value = find(key);
  if (value == nullptr || *value == harmless) return;
  problem(key, std::string(key) + " " + to_text(*value).substr(0, 100) + " is not supported: " + why);
}

void Fields::problem(const std::string& parameter, const std::string& message) {
  if (problem_) return;
  problem_ = ApiError{
      .status = 400, .code = error_code::kInvalidRequest, .message = message, .parameter = parameter};
}

}  // namespace stoker::gateway
