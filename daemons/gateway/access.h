// Who may use the API.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "daemons/gateway/api_error.h"

namespace stoker::gateway {

/// What a request says about where it comes from; empty: it has no such header.
struct Credentials {
  std::string_view authorization{};  ///< "Bearer KEY"
  std::string_view x_api_key{};
  std::string_view origin{};  ///< a browser sends it with every request to another site
  std::string_view host{};
};

/// With a key: whoever has it. Without one the API is for programs of this machine: web pages that its
/// browser shows are refused, be it that they name where they come from (Origin), be it that they made their
/// own name resolve to this machine (Host). `local`: it came through a socket in the file system, where the
/// kernel has checked who may.
[[nodiscard]] std::optional<ApiError> refused(const Credentials& credentials, const std::string& key,
                                              bool local);

/// Whether only this machine can reach `host` ("127.0.0.1", "localhost", "[::1]"; a port may follow).
[[nodiscard]] bool is_loopback(std::string_view host);

}  // namespace stoker::gateway
