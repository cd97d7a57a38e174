// Exit codes of `stoker` (docs/cli.md) and the one way an error is shown.
#pragma once

#include <string>
#include <string_view>

#include "shm/base/result.h"

namespace stoker::cli {

/// Documented in docs/cli.md; scripts rely on the numbers.
enum ExitCode : int {
  kOk = 0,
  kFailure = 1,      ///< something failed while running
  kUsage = 2,        ///< the command line makes no sense
  kUnreachable = 4,  ///< no stack answers in the run directory
  kModel = 5,        ///< model files are missing, corrupt or of an unsupported kind
  kTooLong = 6,      ///< the prompt does not fit the context
  kTimeout = 124,    ///< --timeout ran out
  kInterrupted = 130,
  kTerminated = 143,  ///< SIGTERM
};

/// Exit code for a kind of failure, whether the CLI met it or a daemon reported it.
int exit_code_of(const Error& error);

/// Prints `stoker: <what>: <why>` on stderr as one line (line breaks become spaces); returns `code`.
int report(int code, std::string_view what, std::string_view why);
int report(const Error& error, std::string_view what);

}  // namespace stoker::cli
