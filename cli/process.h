// One child process: spawn with the hygiene a daemon needs, watch by pidfd, stop in order.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "shm/base/clock.h"
#include "shm/base/result.h"
#include "shm/base/unique_fd.h"

namespace stoker::cli {

struct ChildSpec {
  std::string name;               ///< "loader", "worker", "predictor"
  std::vector<std::string> argv;  ///< argv[0] is the path of the binary
  std::string log_path;           ///< stdout and stderr go here (appended); "" = our stderr
};

/// A running child. Destroying it does not stop the process: stop() does.
class ChildProcess {
 public:
  /// The child gets its own process group (a Ctrl-C at the terminal is ours alone), no blocked signals,
  /// /dev/null as stdin, and SIGTERM from the kernel should this process die first.
  static Result<ChildProcess> spawn(const ChildSpec& spec);

  [[nodiscard]] pid_t pid() const { return pid_; }
  /// Readable once the process has ended.
  [[nodiscard]] int pidfd() const { return pidfd_.get(); }
  /// Waits up to `wait_max` for the end; true when it has ended (status() is valid then).
  bool wait(Duration wait_max);
  /// waitpid status of an ended child.
  [[nodiscard]] int status() const { return status_; }
  void signal(int number) const;
  /// SIGTERM, up to `grace`, then SIGKILL. Returns false when SIGKILL was needed.
  bool stop(Duration grace);

 private:
  ChildProcess(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}
  pid_t pid_;
  UniqueFd pidfd_;
  int status_ = 0;
  bool ended_ = false;
};

/// Exit status as a shell shows it: the exit code, or 128 + signal.
int shell_status(int wait_status);
/// "exited with code 5", "was killed by signal 9 (Killed)".
std::string describe_status(int wait_status);

}  // namespace stoker::cli
