// Why a request was not, or not wholly, answered; each API writes it in its own form.
#pragma once

#include <string>
#include <string_view>
#include <tl/expected.hpp>

namespace stoker::gateway {

struct ApiError {
  unsigned status = 400;     ///< HTTP; of no effect once a stream has begun
  std::string code{};        ///< stable, for programs: docs/http.md
  std::string message{};     ///< for people: the thing and the remedy
  std::string parameter{};   ///< which field of the request; empty: none in particular
  unsigned retry_after = 0;  ///< seconds; 0: do not say
};

template <class T>
using Expected = tl::expected<T, ApiError>;

inline tl::unexpected<ApiError> refuse(ApiError error) { return tl::unexpected<ApiError>(std::move(error)); }

/// A code that only the gateway makes: there is no worker, or not any more.
inline constexpr const char* kWorkerGone = "worker_gone";

/// Of a worker's ErrorEvent, or one with the gateway's own code.
[[nodiscard]] ApiError from_worker(std::string_view code, std::string message);

/// error.type of OpenAI's and Anthropic's error objects.
[[nodiscard]] const char* openai_error_type(const ApiError& error);
[[nodiscard]] const char* anthropic_error_type(const ApiError& error);
/// The JSON that is the body of an error, or the data of an error in a stream.
[[nodiscard]] std::string openai_error(const ApiError& error);
[[nodiscard]] std::string anthropic_error(const ApiError& error);

}  // namespace stoker::gateway
