// Runs a set of daemons: starts them, restarts what dies, gives up when that does not help, stops them in
// the reverse order. Used in the foreground by `serve` and in a forked keeper by private stacks (stack.h).
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/process.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker::cli {

struct SupervisorOptions {
  std::vector<ChildSpec> children;  ///< in order of start
  bool restart = true;
  unsigned deaths_max = 5;  ///< more than this many of one child inside the window: give up
  Duration deaths_window = std::chrono::seconds(60);
  Duration backoff_first = std::chrono::milliseconds(100);  ///< doubles with each death in the window
  Duration stop_grace = std::chrono::seconds(10);
};

struct SupervisorEvent {
  enum class Kind { started, died, gave_up } kind = Kind::started;
  std::string child;
  pid_t pid = 0;
  int status = 0;    ///< died, gave_up: exit code or 128 + signal
  std::string text;  ///< one line for people
};

/// Lifecycle: start() once; poll the descriptors of fds() and call step() whenever one is readable or
/// step_within() has passed; stop() at the end (the destructor stops as well).
class Supervisor {
 public:
  using Sink = std::function<void(const SupervisorEvent&)>;
  Supervisor(SupervisorOptions options, const Clock& clock, Sink sink);
  ~Supervisor();
  Supervisor(const Supervisor&) = delete;
  Supervisor& operator=(const Supervisor&) = delete;

  Result<void> start();
  /// Until this is called a child that ends by itself with a non-zero code makes the supervisor give up at
  /// once: a start-up error (bad model, run directory in use) does not go away by trying again.
  void mark_ready() { ready_ = true; }
  [[nodiscard]] std::vector<int> fds() const;
  /// Reaps and restarts. Returns the exit status of the child it gave up on, or nothing.
  std::optional<int> step();
  [[nodiscard]] Duration step_within() const;
  void stop();

 private:
  struct Slot {
    ChildSpec spec;
    std::optional<ChildProcess> process;
    std::vector<Duration> deaths;  ///< inside the window
    std::optional<Duration> due;   ///< restart at this time
  };
  Result<void> launch(Slot& slot);
  std::optional<int> on_death(Slot& slot);

  SupervisorOptions options_;
  const Clock& clock_;
  Sink sink_;
  std::vector<Slot> slots_;
  bool ready_ = false;
};

}  // namespace stoker::cli
