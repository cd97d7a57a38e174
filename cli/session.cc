#include "cli/session.h"

#include <poll.h>

#include <filesystem>
#include <fstream>

namespace stoker::cli {

using namespace std::chrono_literals;
namespace fs = std::filesystem;

namespace {

constexpr Duration kAnswerWait = 5s;
constexpr Duration kStartProbeEvery = 20ms;

std::string canonical_or_same(const std::string& path) {
  std::error_code error;
  const auto canonical = fs::canonical(path, error);
  return error ? path : canonical.string();
}

/// The directory of the model that a worker reports in its status, "" if it does not say.
std::string model_in_status(const std::string& status) {
  const auto json = nlohmann::json::parse(status, nullptr, false);
  if (!json.is_object()) return "";
  if (const auto model = json.find("model"); model != json.end()) {
    if (model->is_object()) return model->value("dir", "");
    if (model->is_string()) return model->get<std::string>();
  }
  return json.value("model_dir", "");
}

/// Sleeps until a descriptor is readable or `wait_max` has passed.
void wait_any(std::initializer_list<int> fds, Duration wait_max) {
  std::vector<pollfd> polled;
  for (const int fd : fds) polled.push_back({fd, POLLIN, 0});
  const auto ms = std::chrono::ceil<std::chrono::milliseconds>(wait_max).count();
  ::poll(polled.data(), polled.size(), static_cast<int>(ms));
}

}  // namespace

void add_session_options(CLI::App& app, SessionOptions& options) {
  app.add_option("--run-dir", options.run_dir,
                 "Run directory of a running stack (default: see `stoker config show`)");
  add_stack_options(app, options.stack);
}

tl::expected<Session, ExitReport> Session::open(Context& context, Interrupts& interrupts,
                                                SessionOptions options) {
  auto settings = load_settings();
  if (!settings) return stop(settings.error(), "configuration");
  if (options.run_dir.empty()) options.run_dir = settings->run_dir;
  const bool named_model = !options.stack.model_dir.empty();

  std::string why_not;
  if (!options.always_private && worker_listens(options.run_dir) && !options.stack.any()) {
    Session session;
    session.run_dir_ = options.run_dir;
    auto client = WorkerClient::connect(options.run_dir, context.clock);
    if (!client) return stop(client.error(), options.run_dir);
    session.client_.emplace(*std::move(client));
    const auto status = session.client_->status(kAnswerWait);
    if (!status) return stop(status.error(), options.run_dir);
    session.model_dir_ = model_in_status(*status);
    const bool same = canonical_or_same(session.model_dir_) == canonical_or_same(options.stack.model_dir);
    if (!named_model || same) return session;
    context.terminal.note("stoker: the stack in " + options.run_dir + " serves " + session.model_dir_ +
                          "; starting a private one for " + options.stack.model_dir);
  }
  if (options.stack.warm_manifest.empty() && settings->origins.count("loader.warm_manifest") > 0)
    options.stack.warm_manifest = settings->warm_manifest;
  if (!named_model) options.stack.model_dir = settings->model_dir;
  if (options.stack.model_dir.empty()) {
    return stop(
        kUnreachable, "no stack answers in " + options.run_dir,
        "and no MODEL_DIR was given to start one. Name a model directory, or start `stoker serve MODEL_DIR`");
  }
  return open_private(context, interrupts, options);
}

tl::expected<Session, ExitReport> Session::open_private(Context& context, Interrupts& interrupts,
                                                        const SessionOptions& options) {
  StackOptions stack = options.stack;
  std::error_code error;
  const fs::path model = fs::canonical(stack.model_dir, error);
  if (error || !fs::is_directory(model, error)) {
    return stop(kModel, stack.model_dir,
                "there is no such model directory. Give the directory that holds config.json");
  }
  stack.model_dir = model.string();
  auto started = PrivateStack::start(stack, context.clock);
  if (!started) return stop(started.error(), "private stack");
  Session session;
  session.run_dir_ = started->run_dir();
  session.model_dir_ = stack.model_dir;
  session.stack_.emplace(*std::move(started));
  if (auto ready = session.wait_ready(context, interrupts, options.deadline); !ready) {
    return tl::unexpected<ExitReport>(std::move(ready).error());
  }
  session.stack_->mark_ready();
  return session;
}

tl::expected<void, ExitReport> Session::wait_ready(Context& context, Interrupts& interrupts,
                                                   std::optional<Duration> deadline) {
  const Duration began = context.clock.now();
  wire::ClientMessage question;
  question.mutable_status();
  client_.reset();
  for (;;) {
    if (stack_) {
      if (const auto failure = stack_->take_failure())
        return stop(failure->exit_code, failure->what, failure->why);
    }
    if (const int signal = interrupts.take(); signal != 0) {
      return stop(exit_code_of_signal(signal), "interrupted", "the stack had not started yet");
    }
    if (deadline && context.clock.now() >= *deadline) {
      return stop(kTimeout, "--timeout", "the stack was not ready in time");
    }
    if (!client_ && worker_listens(run_dir_)) {
      auto client = WorkerClient::connect(run_dir_, context.clock);
      if (client && client->send(question)) client_.emplace(*std::move(client));
    }
    if (client_) {
      auto answer = client_->receive(0ns);
      if (answer && *answer && (*answer)->has_status()) break;
      if (!answer) client_.reset();  // the worker ended; its supervisor says what happens next
    }
    const auto waited = static_cast<long>(seconds(context.clock.now() - began));
    context.terminal.progress("loading " + model_dir_ +
                              (waited > 0 ? " · " + std::to_string(waited) + " s" : ""));
    wait_any({interrupts.fd(), stack_ ? stack_->fd() : -1}, kStartProbeEvery);
  }
  context.terminal.clear_progress();
  return {};
}

tl::expected<void, ExitReport> Session::reconnect(Context& context, Interrupts& interrupts) {
  return wait_ready(context, interrupts, context.clock.now() + 60s);
}

bool has_chat_template(const std::string& model_dir) {
  std::error_code error;
  if (fs::exists(model_dir + "/chat_template.jinja", error)) return true;
  std::ifstream file(model_dir + "/tokenizer_config.json");
  if (!file) return false;
  const auto json = nlohmann::json::parse(file, nullptr, false);
  return json.is_object() && json.contains("chat_template");
}

}  // namespace stoker::cli
