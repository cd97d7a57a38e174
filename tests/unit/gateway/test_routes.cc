#include "daemons/gateway/routes.h"

#include "tests/unit/gateway/rig.h"

using namespace stoker;
using namespace stoker::gateway;
using namespace stoker::gateway::test;

namespace {

const char* const kStatus = R"({"model": {"dir": "/models/Tiny-Coder/"}, "worker": {"context": 4096}})";
const std::string kChat = R"({"messages": [{"role": "user", "content": "Hi"}]})";

/// A gateway without sockets, whose worker says `status` (""; there is none).
struct Site {
  explicit Site(std::string status_text = kStatus, std::string model_name = "")
      : status(std::move(status_text)),
        routes({.model_name = std::move(model_name),
                .worker_status = [this]() -> std::optional<Json> {
                  if (status.empty()) return std::nullopt;
                  return json_of(status);
                },
                .new_id = [] { return "1"; },
                .now = [] { return 1700000000; }},
               metrics) {}

  ApiResponse get(const std::string& path, const std::string& method = "GET", const std::string& body = "") {
    Routed routed = routes.route({.method = method, .path = path, .body = body});
    REQUIRE(std::holds_alternative<ApiResponse>(routed));
    return std::get<ApiResponse>(routed);
  }
  ApiResponse post(const std::string& path, const std::string& body) { return get(path, "POST", body); }
  Generation generate(const std::string& path, const std::string& body) {
    Routed routed = routes.route({.method = "POST", .path = path, .body = body});
    if (const auto* response = std::get_if<ApiResponse>(&routed)) FAIL(response->body);
    return std::get<Generation>(std::move(routed));
  }

  std::string status;
  Metrics metrics;
  Routes routes;
};

const std::vector<std::string> kPosts = {"/v1/chat/completions", "/v1/completions", "/v1/messages",
                                         "/v1/messages/count_tokens", "/tokenize"};

bool is_anthropic(const std::string& body) { return Loose::parse(body)["type"] == "error"; }

}  // namespace

TEST_CASE("routes: what is not there") {
  Site site;
  for (const char* path : {"/nope", "", "/v1", "/v1/modelsx", "/V1/models", "/v1/messages/other"}) {
    CAPTURE(path);
    const ApiResponse response = site.get(path);
    CHECK(response.status == 404);
    CHECK(is_anthropic(response.body) == std::string(path).starts_with("/v1/messages"));
  }
  CHECK(Loose::parse(site.get("/nope").body)["error"]["code"] == "not_found");
}

TEST_CASE("routes: methods") {
  Site site;
  for (const std::string& path : kPosts) {
    CAPTURE(path);
    for (const char* method : {"GET", "HEAD", "PUT", "DELETE", "OPTIONS"})
      CHECK(site.get(path, method).status == 405);
    CHECK(is_anthropic(site.get(path).body) == path.starts_with("/v1/messages"));
  }
  for (const char* path :
       {"/", "/health", "/v1/health", "/metrics", "/v1/status", "/v1/models", "/v1/models/x"}) {
    CAPTURE(path);
    CHECK(site.post(path, "{}").status == 405);
    CHECK(site.get(path, "HEAD").status == site.get(path).status);
  }
  CHECK(site.get("/", "HEAD").status == 200);  // Claude Code's first request
}

TEST_CASE("routes: health and status") {
  Site site;
  CHECK(site.get("/health").body == R"({"status":"ok"})");
  CHECK(site.get("/v1/health").status == 200);
  CHECK(Loose::parse(site.get("/v1/status").body) == Loose::parse(kStatus));
  CHECK(site.get("/").content_type == "text/plain; charset=utf-8");
}

TEST_CASE("routes: without a worker") {
  Site site("");
  for (const char* path : {"/health", "/v1/health", "/v1/status", "/v1/models", "/v1/models/x"}) {
    CAPTURE(path);
    CHECK(site.get(path).status == 503);
    CHECK(site.get(path).retry_after > 0);
  }
  for (const std::string& path : kPosts) {
    CAPTURE(path);
    const ApiResponse response = site.post(path, kChat);
    CHECK(response.status == 503);
    CHECK(response.retry_after > 0);
    CHECK(is_anthropic(response.body) == path.starts_with("/v1/messages"));
  }
  CHECK(site.get("/").status == 200);
  CHECK(site.get("/metrics").body.find("stoker_worker_up 0") != std::string::npos);
}

TEST_CASE("routes: what this server is not") {
  for (const char* status : {kStatus, ""}) {
    Site site(status);
    for (const char* path : {"/v1/embeddings"}) {
      const ApiResponse response = site.post(path, "{}");
      CHECK(response.status == 501);
      CHECK(response.body.find("/v1/chat/completions") != std::string::npos);
    }
  }
}

TEST_CASE("routes: models") {
  Site site;
  const Loose model = Loose::parse(R"({"id": "Tiny-Coder", "object": "model", "created": 0,
      "owned_by": "stoker", "max_model_len": 4096, "context_length": 4096, "meta": {"n_ctx_train": 4096},
      "capabilities": ["completion", "tool_use", "fim"]})");
  CHECK(Loose::parse(site.get("/v1/models").body) ==
        Loose({{"object", "list"}, {"data", Loose::array({model})}}));
  CHECK(Loose::parse(site.get("/v1/models/Tiny-Coder").body) == model);
  for (const char* path : {"/v1/models/", "/v1/models/other", "/v1/models/Tiny-Coder/x"}) {
    CAPTURE(path);
    CHECK(site.get(path).status == 404);
    CHECK(Loose::parse(site.get(path).body)["error"]["code"] == "model_not_found");
  }
  Site named(kStatus, "org/name");
  CHECK(Loose::parse(named.get("/v1/models/org/name").body)["id"] == "org/name");
  for (const char* status : {"{}", R"({"model": 1, "worker": []})", R"({"model": {"dir": "///"}})"}) {
    CAPTURE(status);
    const Loose data = Loose::parse(Site(status).get("/v1/models").body)["data"][0];
    CHECK(data["id"] == "model");
    CHECK(data["context_length"].is_null());
  }
}

TEST_CASE("routes: metrics") {
  Site site;
  site.metrics.count_response("/", 200);
  const ApiResponse response = site.get("/metrics");
  CHECK(response.content_type == "text/plain; version=0.0.4; charset=utf-8");
  CHECK(response.body.find("stoker_http_responses_total") != std::string::npos);
  CHECK(response.body.find("stoker_worker_up 1") != std::string::npos);
}

TEST_CASE("routes: bodies that are refused, in the form of their API") {
  Site site;
  for (const std::string& path : kPosts) {
    for (const char* body :
         {"", "{", "[]", "{}", "{\"messages\": 1, \"prompt\": {}, \"max_tokens\": \"x\"}"}) {
      if (path == "/v1/chat/completions" && std::string(body).size() > 5) continue;  // the worker's to judge
      if (path == "/tokenize" && std::string(body).size() > 5) continue;
      CAPTURE(path, body);
      const ApiResponse response = site.post(path, body);
      CHECK(response.status == 400);
      CHECK(response.content_type == "application/json");
      CHECK(is_anthropic(response.body) == path.starts_with("/v1/messages"));
    }
  }
  CHECK(Loose::parse(site.post("/v1/completions", "{").body)["error"]["message"].get<std::string>().find(
            "the body is not valid JSON") == 0);
}

TEST_CASE("routes: generations") {
  Site site;
  const Generation chat = site.generate("/v1/chat/completions", kChat);
  CHECK(chat.reply->begin(1).find(R"("model":"Tiny-Coder")") != std::string::npos);
  CHECK(chat.reply->begin(1).find(R"("id":"chatcmpl-1")") != std::string::npos);
  CHECK(chat.write_error == openai_error);
  const Generation named = site.generate("/v1/completions", R"({"model": "gpt-4o", "prompt": "a"})");
  Answer answer({}, false, counted_ids());
  CHECK(Loose::parse(named.reply->whole(answer, done_with("stop")))["model"] ==
        "gpt-4o");  // any name is served
  const Generation messages =
      site.generate("/v1/messages", R"({"max_tokens": 1, "messages": [{"role": "user", "content": "a"}]})");
  CHECK(messages.write_error == anthropic_error);
  CHECK(messages.reply->begin(1).starts_with("event: message_start"));
  const Generation count = site.generate("/v1/messages/count_tokens", kChat);
  CHECK(count.plan.request.tokenize());
  CHECK(count.reply->tokens({}) == R"({"input_tokens":0})");
  CHECK(site.generate("/tokenize", R"({"content": "a"})").reply->tokens({}) == R"({"count":0,"tokens":[]})");
}

TEST_CASE("routes: who needs a key, and what metrics call it") {
  for (const char* path : {"/", "/health", "/v1/health"}) CHECK(Routes::is_open(path));
  for (const char* path :
       {"/metrics", "/v1/status", "/v1/models", "/v1/models/x", "/v1/messages", "/nope", ""})
    CHECK_FALSE(Routes::is_open(path));
  CHECK(Routes::known_path("/v1/models/any/thing") == "/v1/models");
  CHECK(Routes::known_path("/v1/messages/count_tokens") == "/v1/messages/count_tokens");
  CHECK(Routes::known_path("/../x\"") == "other");
}
