// SIGTERM and SIGINT as something a loop can poll.
#pragma once

#include "shm/base/result.h"
#include "shm/base/unique_fd.h"

namespace stoker {

class StopSignals {
 public:
  /// Blocks TERM and INT in the calling thread; call before any other thread starts, so that all inherit
  /// it. Also ignores SIGPIPE.
  static Result<StopSignals> make();
  [[nodiscard]] int fd() const { return fd_.get(); }
  /// True once a stop was asked for (and ever after).
  bool stop_requested();

 private:
  explicit StopSignals(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
  bool requested_ = false;
};

}  // namespace stoker
