#include "checkpoint/json_input.h"

#include <unordered_set>
#include <vector>

namespace stoker {

using nlohmann::json;

std::string printable(std::string_view text, std::size_t bytes_max) {
  std::string out;
  for (char c : text.substr(0, bytes_max)) out += (c >= 0x20 && c < 0x7F) ? c : '?';
  if (text.size() > bytes_max) out += "...";
  return out;
}

std::string json_excerpt(const json& value) {
  return printable(value.dump(-1, ' ', true, json::error_handler_t::replace), 60);
}

Result<json> parse_json(std::string_view text, const std::string& what) {
  std::vector<std::unordered_set<std::string>> open_objects;
  std::string problem;
  const auto watch = [&](int depth, json::parse_event_t event, json& value) {
    switch (event) {
      case json::parse_event_t::object_start:
        open_objects.emplace_back();
        break;
      case json::parse_event_t::object_end:
        open_objects.pop_back();
        break;
      case json::parse_event_t::key:
        if (!open_objects.back().insert(value.get_ref<const std::string&>()).second && problem.empty())
          problem = "duplicate key " + json_excerpt(value);
        break;
      default:
        break;
    }
    if (depth > kJsonDepthMax && problem.empty())
      problem = "nested deeper than " + std::to_string(kJsonDepthMax) + " levels";
    // A false answer drops the value, so a refused document does not grow in memory.
    return problem.empty() || event == json::parse_event_t::key;
  };
  try {
    json parsed = json::parse(text.begin(), text.end(), watch);
    if (!problem.empty()) return fail(Errc::corrupt, what + ": " + problem);
    return parsed;
  } catch (const json::exception& e) {
    return fail(Errc::corrupt, what + " is not valid JSON: " + printable(e.what()));
  }
}

}  // namespace stoker
