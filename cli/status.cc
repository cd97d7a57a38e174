// `stoker status`: what the running worker says about itself and its pool.
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "daemons/common/worker_client.h"

namespace stoker::cli {
namespace {

struct StatusOptions {
  std::string run_dir;
  bool json = false;
};

/// "worker.model.dir  value" lines; arrays of plain values stay on one line.
void flatten(const nlohmann::ordered_json& value, const std::string& path, std::string& out) {
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) flatten(child, path.empty() ? key : path + "." + key, out);
    return;
  }
  const bool nested = value.is_array() && !value.empty() && value.front().is_structured();
  if (nested) {
    for (std::size_t i = 0; i < value.size(); ++i)
      flatten(value[i], path + "[" + std::to_string(i) + "]", out);
    return;
  }
  const std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  out += path + std::string(path.size() < 34 ? 34 - path.size() : 1, ' ') + text + "\n";
}

int status(const StatusOptions& options, Context& context) {
  const auto settings = load_settings();
  if (!settings) return report(settings.error(), "configuration");
  const std::string run_dir = options.run_dir.empty() ? settings->run_dir : options.run_dir;
  auto client = WorkerClient::connect(run_dir, context.clock);
  if (!client) return report(client.error(), "status");
  const auto answer = client->status(std::chrono::seconds(10));
  if (!answer) return report(answer.error(), "status");
  std::string text = *answer + "\n";
  if (!options.json) {
    const auto parsed = nlohmann::ordered_json::parse(*answer, nullptr, false);
    if (parsed.is_discarded()) return report(kFailure, "status", "the worker's answer is not JSON");
    text.clear();
    flatten(parsed, "", text);
  }
  return context.terminal.write_answer(text) ? kOk : kFailure;
}

}  // namespace

void add_status(CLI::App& app, Action& action) {
  auto options = std::make_shared<StatusOptions>();
  CLI::App* verb = app.add_subcommand("status", "What the running stack is doing");
  verb->add_option("--run-dir", options->run_dir, "Run directory of the stack");
  verb->add_flag("--json", options->json, "Print JSON");
  verb->callback([options, &action] { action = [options](Context& c) { return status(*options, c); }; });
}

}  // namespace stoker::cli
