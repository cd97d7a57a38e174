// What `stoker trace report` and `replay` have in common: a trace to read, and how it is replayed.
#pragma once

#include <string>
#include <tl/expected.hpp>
#include <vector>

#include "cli/context.h"
#include "cli/exit_code.h"
#include "trace/trace_file.h"

namespace stoker::cli {

struct TraceInput {
  std::string file;
  std::vector<std::uint32_t> slots_per_layer;  ///< empty: some shares of the experts
  std::size_t skip = 0;                        ///< tokens at the start that are replayed but not counted
  bool per_layer = false;                      ///< each layer has slots of its own
};

/// The file, in any format that trace/foreign.h reads; not without a token.
tl::expected<Trace, ExitReport> load_trace(const std::string& path, Context& context);

/// An error if no token would be left to count.
tl::expected<void, ExitReport> check_skip(const TraceInput& options, const Trace& trace);

/// The options for it. They make no sense without `needed`, if given. `sizes`: the default, for
/// the help.
void add_cache_options(CLI::App& verb, TraceInput& options, const std::string& sizes,
                       CLI::Option* needed = nullptr);

/// A number for a table: "-" for one that there is not (NaN).
std::string cell(const char* format, double value);

}  // namespace stoker::cli
