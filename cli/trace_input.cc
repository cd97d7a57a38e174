#include "cli/trace_input.h"

#include <cmath>

#include "cli/statistics.h"
#include "trace/foreign.h"

namespace stoker::cli {

tl::expected<Trace, ExitReport> load_trace(const std::string& path, Context& context) {
  auto trace = read_any_trace(path);
  if (!trace) return stop(trace.error(), "trace");
  if (trace->tokens.empty()) return stop(kModel, path, "holds no token");
  if (trace->bytes_ignored > 0) {
    context.terminal.note("stoker: " + path + ": the last record is cut short; its " +
                          std::to_string(trace->bytes_ignored) + " bytes are left out");
  }
  return *std::move(trace);
}

tl::expected<void, ExitReport> check_skip(const TraceInput& input, const Trace& trace) {
  if (input.skip < trace.tokens.size()) return {};
  return stop(kUsage, "--skip", "the trace has only " + std::to_string(trace.tokens.size()) + " tokens");
}

void add_cache_options(CLI::App& verb, TraceInput& input, const std::string& sizes, CLI::Option* needed) {
  CLI::Option* slots = verb.add_option("--slots-per-layer", input.slots_per_layer,
                                       "Cache sizes, N[,N...] (default: " + sizes + " of the experts)")
                           ->delimiter(',')
                           ->check(CLI::Range(1U, 65535U));
  CLI::Option* skip = verb.add_option("--skip", input.skip,
                                      "Tokens at the start that are replayed but not counted (cold start)");
  CLI::Option* per_layer = verb.add_flag("--per-layer", input.per_layer,
                                         "Each layer has its own slots, instead of one pool (not stoker)");
  if (needed == nullptr) return;
  for (CLI::Option* option : {slots, skip, per_layer}) option->needs(needed);
}

std::string cell(const char* format, double value) {
  return std::isnan(value) ? "-" : number_text(format, value);
}

}  // namespace stoker::cli
