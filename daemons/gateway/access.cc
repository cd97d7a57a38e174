#include "daemons/gateway/access.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <boost/asio/ip/address.hpp>
#include <cctype>

namespace stoker::gateway {
namespace {

/// Takes as long for a wrong key as for the right one.
bool is_key(std::string_view given, const std::string& key) {
  return given.size() == key.size() && CRYPTO_memcmp(given.data(), key.data(), key.size()) == 0;
}

/// `lower` is in lower case.
bool begins_with(std::string_view text, std::string_view lower) {
  const auto same = [](char l, char t) { return std::tolower(static_cast<unsigned char>(t)) == l; };
  return text.size() >= lower.size() && std::equal(lower.begin(), lower.end(), text.begin(), same);
}

ApiError error(unsigned status, const char* code, const char* message) {
  return {.status = status, .code = code, .message = message};
}

}  // namespace

bool is_loopback(std::string_view given) {
  std::string lower(given);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  std::string_view host = lower;
  if (host.starts_with('[')) {
    const std::size_t end = host.find(']');
    if (end == std::string_view::npos) return false;
    if (end + 1 < host.size() && host[end + 1] != ':') return false;
    host = host.substr(1, end - 1);
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
    // Either will do: some clients send both, one of them for another service.
    constexpr std::string_view kBearer = "bearer ";
    if (is_key(credentials.x_api_key, key)) return std::nullopt;
    if (begins_with(credentials.authorization, kBearer) &&
        is_key(credentials.authorization.substr(kBearer.size()), key))
      return std::nullopt;
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
