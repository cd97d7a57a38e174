// From a path and a body to what is to be done. No sockets, no waiting.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "daemons/gateway/json.h"
#include "daemons/gateway/metrics.h"
#include "daemons/gateway/plan.h"
#include "daemons/gateway/reply.h"

namespace stoker::gateway {

struct ApiRequest {
  std::string method;
  std::string path;  ///< without the query
  std::string body;
};

struct ApiResponse {
  unsigned status = 200;
  std::string body{};
  std::string content_type = "application/json";
  unsigned retry_after = 0;  ///< seconds; 0: none
  std::string allow{};       ///< methods, with a 405
};

/// A request that the worker has to answer.
struct Generation {
  Plan plan;
  std::unique_ptr<Reply> reply;
  WriteError write_error = openai_error;
};

using Routed = std::variant<ApiResponse, Generation>;

/// What the routes need to know about the world.
struct RouteFacts {
  std::string model_name{};  ///< gateway.model_name; "": the name of the worker's model directory
  std::function<std::optional<Json>()> worker_status;  ///< nothing: there is no worker
  std::function<std::string()> new_id;
  std::function<std::int64_t()> now;  ///< seconds since 1970
};

class Routes {
 public:
  Routes(RouteFacts facts, const Metrics& metrics);

  [[nodiscard]] Routed route(const ApiRequest& request) const;
  /// The path as metrics count it.
  [[nodiscard]] static std::string known_path(const std::string& path);
  /// May be asked for without a key: load balancers have none.
  [[nodiscard]] static bool is_open(const std::string& path);
  /// In which form errors are written that come before a request is understood.
  [[nodiscard]] static WriteError error_form(const std::string& path);
  [[nodiscard]] static ApiResponse response(const ApiError& error, WriteError write);

 private:
  struct Entry;
  static const Entry* find(const std::string& path);
  Routed health(const ApiRequest& request) const;
  Routed root(const ApiRequest& request) const;
  Routed status(const ApiRequest& request) const;
  Routed models(const ApiRequest& request) const;
  Routed metrics(const ApiRequest& request) const;
  Routed unsupported(const ApiRequest& request) const;

  [[nodiscard]] Json model_json(const Json& status) const;
  [[nodiscard]] std::string model_id(const Json& status) const;
  using MakePlan = Expected<Plan> (*)(const Json&);
  using MakeReply = std::unique_ptr<Reply> (*)(const Plan&, const ReplyContext&);
  Routed generation(const ApiRequest& request, MakePlan make_plan, MakeReply make_reply) const;

  RouteFacts facts_;
  const Metrics& metrics_;
};

}  // namespace stoker::gateway
