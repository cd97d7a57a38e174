#include "daemons/gateway/access.h"

#include <openssl/crypto.h>

#include <boost/asio/ip/address.hpp>

namespace stoker::gateway {
namespace {

/// Takes as long for a wrong key as for the right one.
bool is_key(std::string_view given, const std::string& key) {
  return given.size() == key.size() && CRYPTO_memcmp(given.data(), key.data(), key.size()) == 0;
}

ApiError error(unsigned status, const char* code, const char* message) {
  return {.status = status, .code = code, .message = message};
}

}  // namespace

bool is_loopback(std::string_view host) {
  if (host.starts_with('[')) {
    host = host.substr(1, host.find(']') - 1);
  } else if (const std::size_t colon = host.find(':'); colon == host.rfind(':')) {
    host = host.substr(0, colon);
  }
  if (host == "localhost" || host.ends_with(".localhost")) return true;
  boost::system::error_code failed;
  const auto address = boost::asio::ip::make_address(std::string(host), failed);
  return !failed && address.is_loopback();
}

std::optional<ApiError> refused(const Credentials& credentials, const std::string& key, bool local) {
  if (!key.empty()) {
    constexpr std::string_view kBearer = "Bearer ";
    std::string_view given = credentials.x_api_key;
    if (credentials.authorization.starts_with(kBearer))
      given = credentials.authorization.substr(kBearer.size());
    if (is_key(given, key)) return std::nullopt;
    return error(401, "invalid_api_key",
                 "no API key, or a wrong one: send Authorization: Bearer KEY (or x-api-key: KEY)");
  }
  if (local) return std::nullopt;
  if (!credentials.origin.empty())
    return error(403, "forbidden",
                 "web pages may not use this server: it has no API key (gateway.api_key_file)");
  if (!credentials.host.empty() && !is_loopback(credentials.host))
    return error(
        403, "forbidden",
        "the Host header names another machine, and this server has no API key (gateway.api_key_file)");
  return std::nullopt;
}

}  // namespace stoker::gateway
