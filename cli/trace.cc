// `stoker trace`: its verbs are in files of their own.
#include "cli/context.h"

namespace stoker::cli {

void add_trace(CLI::App& app, Action& action) {
  CLI::App* trace =
      app.add_subcommand("trace", "Routing traces: record, describe, replay, score the predictor");
  trace->require_subcommand(1);
  add_trace_record(*trace, action);
  add_trace_replay(*trace, action);
  add_trace_score(*trace, action);
  add_trace_report(*trace, action);
}

}  // namespace stoker::cli
