#include "daemons/gateway/api_error.h"

#include <array>

#include "daemons/common/messages.h"
#include "daemons/gateway/json.h"

namespace stoker::gateway {
namespace {

struct Mapping {
  std::string_view code;
  unsigned status, retry_after;
};
constexpr std::array kMappings = {
    Mapping{error_code::kInvalidRequest, 400, 0}, Mapping{error_code::kContext, 400, 0},
    Mapping{error_code::kMemory, 400, 0},         Mapping{error_code::kNoTokenizer, 400, 0},
    Mapping{error_code::kNoTemplate, 400, 0},     Mapping{error_code::kQueueFull, 429, 10},
    Mapping{error_code::kSlowClient, 503, 1},     Mapping{error_code::kLoaderGone, 503, 5},
    Mapping{error_code::kShuttingDown, 503, 5},   Mapping{kWorkerGone, 503, 5},
    Mapping{error_code::kDeviceLost, 503, 5},
};

}  // namespace

ApiError from_worker(std::string_view code, std::string message) {
  ApiError error{.status = 500, .code = std::string(code), .message = std::move(message)};
  for (const Mapping& mapping : kMappings) {
    if (mapping.code != code) continue;
    error.status = mapping.status;
    error.retry_after = mapping.retry_after;
  }
  return error;
}

const char* openai_error_type(const ApiError& error) {
  switch (error.status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 429:
      return "rate_limit_error";
    default:
      return error.status < 500 ? "invalid_request_error" : "server_error";
  }
}

const char* anthropic_error_type(const ApiError& error) {
  switch (error.status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    default:
      return error.status < 500 ? "invalid_request_error" : "api_error";
  }
}

std::string openai_error(const ApiError& error) {
  const Json parameter = error.parameter.empty() ? Json(nullptr) : Json(error.parameter);
  return to_text({{"error",
                   {{"message", error.message},
                    {"type", openai_error_type(error)},
                    {"param", parameter},
                    {"code", error.code}}}});
}

std::string anthropic_error(const ApiError& error) {
  return to_text(
      {{"type", "error"}, {"error", {{"type", anthropic_error_type(error)}, {"message", error.message}}}});
}

}  // namespace stoker::gateway
