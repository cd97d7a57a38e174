// SIGINT and SIGTERM as a readable descriptor, so that one poll waits for tokens, keys and signals alike
// and nothing runs in signal context. Blocked while the object lives; children must unblock (supervisor.cc).
#pragma once

#include "shm/base/result.h"
#include "shm/base/unique_fd.h"

namespace stoker::cli {

class Interrupts {
 public:
  static Result<Interrupts> open();
  Interrupts(Interrupts&&) noexcept = default;
  Interrupts& operator=(Interrupts&&) noexcept = default;

  [[nodiscard]] int fd() const { return fd_.get(); }
  /// Takes one pending signal: SIGINT, SIGTERM, SIGHUP, or 0 when there is none.
  int take();

 private:
  explicit Interrupts(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

/// Exit code for a command that `signal` ended.
int exit_code_of_signal(int signal);

}  // namespace stoker::cli
