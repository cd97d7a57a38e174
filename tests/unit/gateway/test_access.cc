#include "daemons/gateway/access.h"

#include "daemons/common/messages.h"
#include "tests/unit/gateway/rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

/// 200: admitted.
unsigned outcome(const Credentials& credentials, const std::string& key, bool local = false) {
  const auto error = refused(credentials, key, local);
  if (error) CHECK(error->message.size() > 20);
  return error ? error->status : 200;
}

}  // namespace

TEST_CASE("access: with a key, whoever has it") {
  const std::string key = "secret-key";
  CHECK(outcome({.authorization = "Bearer secret-key"}, key) == 200);
  CHECK(outcome({.authorization = "bearer secret-key"}, key) == 200);  // schemes know no case
  CHECK(outcome({.x_api_key = "secret-key"}, key) == 200);
  CHECK(outcome({.authorization = "Bearer other", .x_api_key = "secret-key"}, key) == 200);
  CHECK(outcome({.authorization = "Bearer secret-key", .x_api_key = "other"}, key) == 200);
  // From anywhere, a web page of another machine included.
  CHECK(outcome({.x_api_key = "secret-key", .origin = "https://x.example", .host = "x.example"}, key) == 200);
  for (const char* wrong : {"", "Bearer", "Bearer ", "secret-key", "Basic secret-key", "Bearer secret-ke",
                            "Bearer secret-key2", "Bearer Secret-key", "Bearer  secret-key"}) {
    CAPTURE(wrong);
    CHECK(outcome({.authorization = wrong}, key) == 401);
  }
  CHECK(outcome({.x_api_key = "Bearer secret-key"}, key) == 401);
  CHECK(outcome({}, key, true) == 401);  // a socket file does not replace the key
  CHECK(refused({}, key, false)->code == "invalid_api_key");
}

TEST_CASE("access: without a key, programs of this machine and no web pages") {
  CHECK(outcome({}, "") == 200);
  for (const char* host : {"localhost", "localhost:8080", "127.0.0.1:8080", "[::1]:8080", "127.8.9.1"})
    CHECK(outcome({.host = host}, "") == 200);
  CHECK(outcome({.origin = "https://x.example", .host = "localhost"}, "") == 403);
  CHECK(outcome({.origin = "http://localhost:3000", .host = "localhost"}, "") == 403);
  CHECK(outcome({.origin = "null"}, "") == 403);
  CHECK(outcome({.host = "x.example"}, "") == 403);
  CHECK(outcome({.host = "192.168.0.2:8080"}, "") == 403);
  // The kernel has checked who opens a socket file.
  CHECK(outcome({.origin = "https://x.example", .host = "x.example"}, "", true) == 200);
}

TEST_CASE("access: names of this machine") {
  for (const char* host : {"localhost", "localhost:1", "a.localhost:1", "127.0.0.1", "127.255.0.9:80",
                           "[::1]", "[::1]:80", "::1"}) {
    CAPTURE(host);
    CHECK(is_loopback(host));
  }
  for (const char* host :
       {"", ":80", "localhost.example", "notlocalhost", "127.0.0.1.example", "0.0.0.0", "10.0.0.1",
        "[::2]:80", "[::]", "::", "127.1", "[127.0.0.1", "[::1]x", "[", "[]", "localhost:1:2"}) {
    CAPTURE(host);
    CHECK_FALSE(is_loopback(host));
  }
}

TEST_CASE("errors: every code of the worker has its status") {
  const std::vector<std::pair<const char*, unsigned>> codes = {
      {error_code::kInvalidRequest, 400}, {error_code::kDuplicateId, 500},
      {error_code::kContext, 400},        {error_code::kMemory, 400},
      {error_code::kQueueFull, 429},      {error_code::kSlowClient, 503},
      {error_code::kNoTokenizer, 400},    {error_code::kNoTemplate, 400},
      {error_code::kExpertRead, 500},     {error_code::kLoaderGone, 503},
      {error_code::kDeviceLost, 503},     {error_code::kShuttingDown, 503},
      {error_code::kInternal, 500},       {kWorkerGone, 503},
      {"of a later version", 500},
  };
  for (const auto& [code, status] : codes) {
    CAPTURE(code);
    const ApiError error = from_worker(code, "why");
    CHECK(error.status == status);
    CHECK(error.code == code);
    CHECK(error.message == "why");
    // Who may try again is told when.
    CHECK((error.retry_after > 0) == (status == 429 || status == 503));
  }
}

TEST_CASE("errors: the forms of both APIs") {
  const ApiError error{.status = 400, .code = "invalid_request", .message = "no \"x\"", .parameter = "x"};
  CHECK(Loose::parse(openai_error(error)) ==
        Loose::parse(R"({"error": {"message": "no \"x\"", "type": "invalid_request_error", "param": "x",
                         "code": "invalid_request"}})"));
  CHECK(Loose::parse(anthropic_error(error)) ==
        Loose::parse(R"({"type": "error", "error": {"type": "invalid_request_error",
                         "message": "no \"x\""}})"));
  struct Types {
    unsigned status;
    std::string openai, anthropic;
  };
  for (const Types& types :
       {Types{400, "invalid_request_error", "invalid_request_error"},
        Types{401, "authentication_error", "authentication_error"},
        Types{403, "permission_error", "permission_error"},
        Types{404, "invalid_request_error", "not_found_error"},
        Types{405, "invalid_request_error", "invalid_request_error"},
        Types{413, "invalid_request_error", "request_too_large"},
        Types{429, "rate_limit_error", "rate_limit_error"}, Types{500, "server_error", "api_error"},
        Types{501, "server_error", "api_error"}, Types{503, "server_error", "overloaded_error"}}) {
    CAPTURE(types.status);
    CHECK(openai_error_type({.status = types.status}) == types.openai);
    CHECK(anthropic_error_type({.status = types.status}) == types.anthropic);
  }
  CHECK(Loose::parse(openai_error({.message = "\xFF"}))["error"]["param"].is_null());
}
