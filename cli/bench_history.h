// The JSONL history of `stoker bench`: rows of earlier runs, and what has changed since.
#pragma once

#include <optional>
#include <string>

#include "cli/bench_report.h"
#include "shm/base/result.h"

namespace stoker::cli {

/// All rows of a history, oldest first. `path` is for errors, which name file and line (Errc::invalid).
Result<Rows> parse_history(const std::string& text, const std::string& path);

/// Adds rows at the end of the file, which is made if need be; none or all (one write).
Result<void> append_history(const std::string& path, const Rows& rows);

/// Sets "change" of each row: its speed divided by that of the last row of `history` for the same model,
/// test, pool state and size, and whether that is more than noise. Its numbers are null where there is none.
void add_changes(Rows& rows, const Rows& history);

}  // namespace stoker::cli
