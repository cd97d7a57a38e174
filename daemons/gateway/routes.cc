#include "daemons/gateway/routes.h"

#include <array>

#include "daemons/common/messages.h"
#include "daemons/gateway/anthropic_request.h"
#include "daemons/gateway/openai_request.h"
#include "daemons/gateway/responses_request.h"
#include "daemons/gateway/worker_link.h"

namespace stoker::gateway {

struct Routes::Entry {
  std::string_view path;
  std::string_view method;
  Routed (Routes::*handle)(const ApiRequest&) const = nullptr;  ///< null: a generation
  bool open = false;                                            ///< needs no key
  MakePlan plan = nullptr;
  MakeReply reply = nullptr;
};

namespace {

constexpr std::string_view kModels = "/v1/models";
constexpr std::string_view kAnthropic = "/v1/messages";

ApiError no_worker() {
  return {.status = 503,
          .code = kWorkerGone,
          .message = "the worker is not running yet, or not any more; try again later",
          .retry_after = 5};
}

std::unique_ptr<Reply> tokens_maker(const Plan&, const ReplyContext&) { return tokens_reply(); }
std::unique_ptr<Reply> count_maker(const Plan&, const ReplyContext&) { return count_reply(); }

}  // namespace

Routes::Routes(RouteFacts facts, const Metrics& metrics) : facts_(std::move(facts)), metrics_(metrics) {}

const Routes::Entry* Routes::find(const std::string& path) {
  static constexpr std::array kEntries = {
      Entry{"/", "GET", &Routes::root, true},
      Entry{"/health", "GET", &Routes::health, true},
      Entry{"/v1/health", "GET", &Routes::health, true},
      Entry{"/metrics", "GET", &Routes::metrics},
      Entry{"/v1/status", "GET", &Routes::status},
      Entry{kModels, "GET", &Routes::models},
      Entry{.path = "/v1/chat/completions", .method = "POST", .plan = chat_plan, .reply = chat_reply},
      Entry{.path = "/v1/completions", .method = "POST", .plan = completion_plan, .reply = completion_reply},
      Entry{.path = "/v1/responses", .method = "POST", .plan = responses_plan, .reply = responses_reply},
      Entry{.path = kAnthropic, .method = "POST", .plan = messages_plan, .reply = messages_reply},
      Entry{.path = "/v1/messages/count_tokens",
            .method = "POST",
            .plan = count_tokens_plan,
            .reply = count_maker},
      Entry{.path = "/tokenize", .method = "POST", .plan = tokenize_plan, .reply = tokens_maker},
      Entry{"/v1/embeddings", "POST", &Routes::unsupported},
  };
  for (const Entry& entry : kEntries) {
    if (path == entry.path) return &entry;
    if (entry.path == kModels && path.starts_with(std::string(kModels) + "/")) return &entry;
  }
  return nullptr;
}

std::string Routes::known_path(const std::string& path) {
  const Entry* entry = find(path);
  return entry == nullptr ? "other" : std::string(entry->path);
}

bool Routes::is_open(const std::string& path) {
  const Entry* entry = find(path);
  return entry != nullptr && entry->open;
}

WriteError Routes::error_form(const std::string& path) {
  return path.starts_with(kAnthropic) ? anthropic_error : openai_error;
}

ApiResponse Routes::response(const ApiError& error, WriteError write) {
  return {.status = error.status, .body = write(error), .retry_after = error.retry_after};
}

Routed Routes::route(const ApiRequest& request) const {
  const WriteError write = error_form(request.path);
  const Entry* entry = find(request.path);
  if (entry == nullptr)
    return response({.status = 404, .code = "not_found", .message = "there is no " + request.path + " here"},
                    write);
  // HEAD is GET without the body, which HTTP leaves out.
  const bool fits = request.method == entry->method || (request.method == "HEAD" && entry->method == "GET");
  if (!fits) {
    const std::string method(entry->method);
    ApiResponse no = response({.status = 405,
                               .code = "method_not_allowed",
                               .message = request.path + " takes " + method + ", not " + request.method},
                              write);
    no.allow = method == "GET" ? "GET, HEAD" : method;
    return no;
  }
  if (entry->handle == nullptr) return generation(request, entry->plan, entry->reply);
  return (this->*entry->handle)(request);
}

Routed Routes::root(const ApiRequest&) const {
  return ApiResponse{.body = "Stoker\n", .content_type = "text/plain; charset=utf-8"};
}

Routed Routes::health(const ApiRequest&) const {
  if (!facts_.worker_status()) return response(no_worker(), openai_error);
  return ApiResponse{.body = to_text({{"status", "ok"}})};
}

Routed Routes::status(const ApiRequest&) const {
  const auto status = facts_.worker_status();
  if (!status) return response(no_worker(), openai_error);
  return ApiResponse{.body = to_text(*status)};
}

Routed Routes::metrics(const ApiRequest&) const {
  return ApiResponse{.body = metrics_.text(facts_.worker_status()),
                     .content_type = "text/plain; version=0.0.4; charset=utf-8"};
}

std::string Routes::model_id(const Json& status) const {
  if (!facts_.model_name.empty()) return facts_.model_name;
  std::string dir;
  if (const auto model = status.find("model"); model != status.end() && model->is_object())
    if (const auto found = model->find("dir"); found != model->end() && found->is_string()) dir = *found;
  while (dir.ends_with('/')) dir.pop_back();
  dir = dir.substr(dir.rfind('/') + 1);
  return dir.empty() ? "model" : dir;
}

/// The context under all the names that clients look for.
Json Routes::model_json(const Json& status) const {
  const Json worker = status.value("worker", Json::object());
  const Json context = worker.is_object() ? worker.value("context", Json()) : Json();
  return {{"id", model_id(status)},
          {"object", "model"},
          {"created", 0},
          {"owned_by", "stoker"},
          {"max_model_len", context},
          {"context_length", context},
          {"meta", {{"n_ctx_train", context}}},
          {"capabilities", {"completion", "tool_use", "fim"}}};
}

Routed Routes::models(const ApiRequest& request) const {
  const auto status = facts_.worker_status();
  if (!status) return response(no_worker(), openai_error);
  const Json model = model_json(*status);
  if (request.path == kModels)
    return ApiResponse{.body = to_text({{"object", "list"}, {"data", Json::array({model})}})};
  const std::string asked = request.path.substr(kModels.size() + 1);
  if (asked == model["id"]) return ApiResponse{.body = to_text(model)};
  return response({.status = 404,
                   .code = "model_not_found",
                   .message = "there is no model \"" + asked + "\"; this server has " + to_text(model["id"])},
                  openai_error);
}

Routed Routes::generation(const ApiRequest& request, MakePlan make_plan, MakeReply make_reply) const {
  const WriteError write = error_form(request.path);
  const auto status = facts_.worker_status();
  if (!status) return response(no_worker(), write);
  const auto body = parse_json(request.body);
  if (!body)
    return response(
        {.status = 400, .code = error_code::kInvalidRequest, .message = "the body is " + body.error().text()},
        write);
  auto plan = make_plan(*body);
  if (!plan) return response(plan.error(), write);
  // Any name is served: clients ask for the models of the service that they were written for.
  ReplyContext context{.id = facts_.new_id(), .created = facts_.now(), .model = plan->model};
  if (context.model.empty()) context.model = model_id(*status);
  auto reply = make_reply(*plan, context);
  return Generation{.plan = *std::move(plan), .reply = std::move(reply), .write_error = write};
}

Routed Routes::unsupported(const ApiRequest& request) const {
  return response(
      {.status = 501,
       .code = "unsupported",
       .message = request.path + " is not built; this server has /v1/chat/completions, /v1/completions, "
                                 "/v1/responses and /v1/messages"},
      openai_error);
}

}  // namespace stoker::gateway
