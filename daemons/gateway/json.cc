#include "daemons/gateway/json.h"

namespace stoker::gateway {

Result<Json> parse_json(std::string_view text) {
  bool too_deep = false;
  const auto watch = [&too_deep](int depth, Json::parse_event_t, const Json&) {
    too_deep = too_deep || depth > kJsonDepthMax;
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

std::string to_text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace stoker::gateway
