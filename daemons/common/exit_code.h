// Exit codes of every program, by kind of failure (docs/cli.md). A daemon that cannot start prints a last
// line "error: ..." on stderr and ends with one of these; the CLI relays both.
#pragma once

#include "shm/base/result.h"

namespace stoker {

enum ExitCode : int {
  kOk = 0,
  kFailure = 1,      ///< something failed while running
  kUsage = 2,        ///< the command line, configuration or request makes no sense
  kUnreachable = 4,  ///< no stack answers in the run directory, or not any more
  kModel = 5,        ///< model files are missing, corrupt or of an unsupported kind
  kTooLong = 6,      ///< the prompt does not fit the context
  kTimeout = 124,    ///< --timeout ran out
  kInterrupted = 130,
  kTerminated = 143,  ///< SIGTERM
};

inline int exit_code_of(const Error& error) {
  switch (error.code) {
    case Errc::corrupt:
    case Errc::missing:
    case Errc::unsupported:
      return kModel;
    case Errc::invalid:
      return kUsage;
    case Errc::too_large:
      return kTooLong;
    case Errc::peer_gone:
    case Errc::device_lost:
      return kUnreachable;
    case Errc::cancelled:
      return kInterrupted;
    case Errc::io:
    case Errc::no_memory:
    case Errc::busy:
    case Errc::layout:
      return kFailure;
  }
  return kFailure;
}

}  // namespace stoker
