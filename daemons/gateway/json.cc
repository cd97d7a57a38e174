#include "daemons/gateway/json.h"

namespace stoker::gateway {

Result<Json> parse_json(std::string_view text) {
  // The parser takes a zero byte for the end.
  if (const auto zero = text.find('\0'); zero != std::string_view::npos)
    return fail(Errc::invalid, "not valid JSON: a zero byte at " + std::to_string(zero));
  bool too_deep = false;
  const auto watch = [&too_deep](int depth, Json::parse_event_t event, const Json&) {
    using Event = Json::parse_event_t;
    // What opens or closes a level is reported with the depth outside.
    const bool opens = event == Event::object_start || event == Event::array_start;
    too_deep = too_deep || depth + (opens ? 1 : 0) > kJsonDepthMax;
    return !too_deep;
  };
  try {
    Json json = Json::parse(text, watch);
    if (!too_deep) return json;
  } catch (const Json::exception& e) {
    std::string what = e.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    if (const auto end = what.find("] "); end != std::string::npos) what.erase(0, end + 2);
    return fail(Errc::invalid, "not valid JSON: " + what);
  }
  return fail(Errc::too_large, "JSON of more than " + std::to_string(kJsonDepthMax) + " levels");
}

std::string string_in(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

std::string to_text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace stoker::gateway
