// Where a command's requests go: a running stack if one serves the run directory, else a stack of its own.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "cli/context.h"
#include "cli/interrupts.h"
#include "cli/stack.h"
#include "cli/stack_options.h"
#include "daemons/common/worker_client.h"

namespace stoker::cli {

struct SessionOptions {
  StackOptions stack;   ///< stack.model_dir may be "": then a running stack is needed
  std::string run_dir;  ///< "" = the configured one
  std::optional<Duration> deadline;
  bool always_private = false;  ///< never uses a running stack
};

void add_session_options(CLI::App& app, SessionOptions& options);

class Session {
 public:
  /// Uses the stack in the run directory when it answers, holds the same model, and no stack option was
  /// given; otherwise starts a private one and waits until its worker answers. Must be called while the
  /// process has one thread.
  static tl::expected<Session, ExitReport> open(Context& context, Interrupts& interrupts,
                                                SessionOptions options);

  [[nodiscard]] WorkerClient& client() { return *client_; }
  [[nodiscard]] const std::string& model_dir() const { return model_dir_; }
  [[nodiscard]] const std::string& run_dir() const { return run_dir_; }
  [[nodiscard]] bool is_private() const { return stack_.has_value(); }
  /// Connects again after the worker died (a supervised worker comes back). Waits up to 60 s.
  tl::expected<void, ExitReport> reconnect(Context& context, Interrupts& interrupts);

 private:
  Session() = default;
  static tl::expected<Session, ExitReport> open_private(Context& context, Interrupts& interrupts,
                                                        const SessionOptions& options);
  tl::expected<void, ExitReport> wait_ready(Context& context, Interrupts& interrupts,
                                            std::optional<Duration> deadline);
  // Order matters: the client closes before the stack stops.
  std::optional<PrivateStack> stack_;
  std::optional<WorkerClient> client_;
  std::string run_dir_, model_dir_;
};

/// Whether the checkpoint directory has a chat template (chat_template.jinja, or the key in
/// tokenizer_config.json).
bool has_chat_template(const std::string& model_dir);

}  // namespace stoker::cli
