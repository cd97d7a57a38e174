// The one way the CLI shows an error, and the exit code that goes with it (daemons/common/exit_code.h).
#pragma once

#include <string_view>

#include "daemons/common/exit_code.h"
#include "shm/base/result.h"

namespace stoker::cli {

/// Prints `stoker: <what>: <why>` on stderr as one line (line breaks become spaces); returns `code`.
int report(int code, std::string_view what, std::string_view why);
int report(const Error& error, std::string_view what);

}  // namespace stoker::cli
