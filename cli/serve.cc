// `stoker serve`: the whole stack in the foreground, without systemd.
#include <poll.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <memory>

#include "cli/context.h"
#include "cli/interrupts.h"
#include "cli/stack.h"
#include "cli/stack_options.h"
#include "cli/supervisor.h"
#include "daemons/common/notify.h"
#include "daemons/common/worker_client.h"
#include "shm/run_directory.h"

namespace stoker::cli {
namespace {

using namespace std::chrono_literals;

constexpr Duration kProbeEvery = 200ms;
constexpr Duration kProbeWait = 200ms;

struct ServeOptions {
  StackOptions stack;
  std::string run_dir;
  bool no_restart = false, unlink_on_exit = false, no_gateway = false;
};

/// Says once, to people and to systemd, that the worker answers.
class ReadyProbe {
 public:
  ReadyProbe(Context& context, std::string run_dir, const Notifier& notifier)
      : context_(context), run_dir_(std::move(run_dir)), notifier_(notifier) {}
  [[nodiscard]] bool ready() const { return ready_; }
  /// True at the one call that finds the worker ready.
  bool look() {
    if (ready_ || !worker_listens(run_dir_)) return false;
    auto client = WorkerClient::connect(run_dir_, context_.clock);
    if (!client || !client->status(kProbeWait)) return false;
    ready_ = true;
    context_.terminal.note("stoker: ready, serving in " + run_dir_);
    notifier_.ready("serving");
    return true;
  }

 private:
  Context& context_;
  std::string run_dir_;
  const Notifier& notifier_;
  bool ready_ = false;
};

/// Runs until a signal (returns its exit code) or until the supervisor gives up.
int supervise(Context& context, Supervisor& supervisor, Interrupts& interrupts, ReadyProbe& probe) {
  for (;;) {
    std::vector<pollfd> polled{{interrupts.fd(), POLLIN, 0}};
    for (const int fd : supervisor.fds()) polled.push_back({fd, POLLIN, 0});
    const Duration wait =
        probe.ready() ? supervisor.step_within() : std::min(supervisor.step_within(), kProbeEvery);
    const auto ms = std::chrono::ceil<std::chrono::milliseconds>(wait).count();
    ::poll(polled.data(), polled.size(), static_cast<int>(ms));
    if (const int signal = interrupts.take(); signal != 0) {
      context.terminal.note("stoker: stopping");
      return signal == SIGTERM ? kOk : exit_code_of_signal(signal);
    }
    if (const auto status = supervisor.step()) return exit_code_of_daemon(*status);
    if (probe.look()) supervisor.mark_ready();
  }
}

int serve(ServeOptions options, Context& context) {
  const auto settings = load_settings();
  if (!settings) return report(settings.error(), "configuration");
  if (options.stack.model_dir.empty()) options.stack.model_dir = settings->model_dir;
  if (options.stack.model_dir.empty()) {
    return report(kUsage, "serve", "no model. Give MODEL_DIR, or set model.dir in config.toml");
  }
  std::error_code error;
  const auto model = std::filesystem::canonical(options.stack.model_dir, error);
  if (error) {
    return report(kModel, options.stack.model_dir,
                  "there is no such model directory. Give the directory that holds "
                  "config.json");
  }
  options.stack.model_dir = model.string();
  options.stack.gateway = !options.no_gateway;
  const auto run_dir = make_run_directory(
      {options.run_dir.empty() ? settings->run_dir : options.run_dir, "", settings->group_access});
  if (!run_dir) return report(run_dir.error(), "serve");
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "serve");

  SupervisorOptions supervised;
  supervised.children = stack_children(options.stack, *run_dir, StackLogs::inherit, options.unlink_on_exit);
  supervised.restart = !options.no_restart;
  std::string gave_up;
  Supervisor supervisor(std::move(supervised), context.clock, [&](const SupervisorEvent& event) {
    context.terminal.note("stoker: " + event.text);
    if (event.kind == SupervisorEvent::Kind::gave_up) gave_up = event.text;
  });
  // We answer to systemd for the whole stack; the daemons must not.
  const Notifier notifier(settings->notify_socket);
  ::unsetenv("NOTIFY_SOCKET");
  if (const auto started = supervisor.start(); !started) return report(started.error(), "serve");
  ReadyProbe probe(context, *run_dir, notifier);
  const int code = supervise(context, supervisor, *interrupts, probe);
  notifier.stopping();
  supervisor.stop();
  context.terminal.note("stoker: stopped");
  // The last line says why it ended, whatever the daemons logged meanwhile.
  return gave_up.empty() ? code : report(code, "serve", gave_up + "; its reason stands above");
}

}  // namespace

void add_serve(CLI::App& app, Action& action) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* verb =
      app.add_subcommand("serve", "Run loader, worker, predictor and HTTP API in the foreground");
  verb->add_option("MODEL_DIR", options->stack.model_dir,
                   "Checkpoint directory (default: model.dir of the configuration)");
  verb->add_option("--run-dir", options->run_dir,
                   "Directory of sockets and locks (default: see `stoker config show`)");
  verb->add_flag("--no-restart", options->no_restart, "Stop everything when one process dies");
  verb->add_flag("--unlink-on-exit", options->unlink_on_exit,
                 "Free the pool at the end instead of keeping it warm");
  auto* listen = verb->add_option("--listen", options->stack.listen,
                                  "HOST:PORT of the HTTP API, or none (default: 127.0.0.1:8642)");
  auto* key = verb->add_option("--api-key-file", options->stack.api_key_file,
                               "File whose first line is the key that HTTP clients must send");
  verb->add_flag("--no-gateway", options->no_gateway, "No HTTP API at all")->excludes(listen)->excludes(key);
  add_stack_options(*verb, options->stack);
  verb->callback([options, &action] { action = [options](Context& c) { return serve(*options, c); }; });
}

}  // namespace stoker::cli
