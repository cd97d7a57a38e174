// A stack of one's own for one command: loader, worker, predictor in a private run directory, gone without
// a trace when the command ends, however it ends.
//
// Lifecycle:
//   1. start() makes the directory (mode 0700) and forks a *keeper*, which starts and supervises the
//      daemons. The keeper is our child and their parent.
//   2. We hold one end of a socket pair. When it closes (we stopped, crashed or were killed) the keeper
//      stops the daemons in order, removes shared memory and directory, and ends.
//   3. Should the keeper be killed, the kernel sends the daemons SIGTERM, and we (or, if we are gone too,
//      the loader's --unlink-on-exit) clean up.
#pragma once

#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>

#include "cli/stack_options.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"
#include "shm/base/unique_fd.h"

namespace stoker::cli {

class PrivateStack {
 public:
  /// Must be called while this process has one thread (it forks). `options.model_dir` is absolute.
  static Result<PrivateStack> start(const StackOptions& options, const Clock& clock);
  PrivateStack(PrivateStack&& other) noexcept;
  PrivateStack& operator=(PrivateStack&&) = delete;
  ~PrivateStack();  ///< stop()

  [[nodiscard]] const std::string& run_dir() const { return run_dir_; }
  /// Readable when the keeper has something to say: call take_failure().
  [[nodiscard]] int fd() const { return control_.get(); }

  struct Failure {
    int exit_code = 1;  ///< for our own exit
    std::string what;   ///< the daemon's name
    std::string why;    ///< its own last words, from its log
  };
  /// Why the keeper gave up, if it did. Does not block.
  std::optional<Failure> take_failure();
  /// Tells the keeper that the stack answered once: from now on what dies is restarted.
  void mark_ready();
  /// Stops everything and waits until it is gone.
  void stop();

 private:
  PrivateStack(std::string run_dir, pid_t keeper, UniqueFd control)
      : run_dir_(std::move(run_dir)), keeper_(keeper), control_(std::move(control)) {}
  std::string run_dir_;
  pid_t keeper_;
  UniqueFd control_;
  std::string received_;
};

/// Removes the shared memory that belongs to a run directory. Safe when there is none.
void remove_shared_memory(const std::string& run_dir);

/// The reason in a daemon's log: the text of its last error line, else its last line.
std::string last_words(const std::string& log_path);

/// Exit code of the CLI for a daemon that ended with `status` (exit code, or 128 + signal) at start.
int exit_code_of_daemon(int status);

}  // namespace stoker::cli
