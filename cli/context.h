// What main hands to every verb, and how verbs are put on the command line.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>

#include "cli/exit_code.h"
#include "cli/terminal.h"
#include "daemons/common/config.h"
#include "shm/base/clock.h"
#include "shm/base/result.h"

namespace stoker::cli {

struct Context {
  const Clock& clock;
  Terminal& terminal;
};

/// The chosen verb's work; returns the exit code. Set by the verb's parser callback, run by main.
using Action = std::function<int(Context&)>;

/// Why a command ends early: one line for stderr, one exit code.
struct ExitReport {
  int code = kFailure;
  std::string what, why;
  static ExitReport of(const Error& error, std::string what) {
    return {exit_code_of(error), std::move(what), error.text()};
  }
};
inline int report(const ExitReport& r) { return report(r.code, r.what, r.why); }
inline tl::unexpected<ExitReport> stop(int code, std::string what, std::string why) {
  return tl::unexpected<ExitReport>(ExitReport{code, std::move(what), std::move(why)});
}
inline tl::unexpected<ExitReport> stop(const Error& error, std::string what) {
  return tl::unexpected<ExitReport>(ExitReport::of(error, std::move(what)));
}

/// Configuration files and environment (no flags): where the run directory and the model are by default.
Result<Config> load_settings();

/// Each verb adds its subcommand to `app` and stores its work in `action` when it is chosen.
void add_run(CLI::App& app, Action& action);
void add_chat(CLI::App& app, Action& action);
void add_serve(CLI::App& app, Action& action);
void add_status(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_verify(CLI::App& app, Action& action);
void add_tokenize(CLI::App& app, Action& action);
void add_detokenize(CLI::App& app, Action& action);
void add_template(CLI::App& app, Action& action);
void add_logits(CLI::App& app, Action& action);
void add_perplexity(CLI::App& app, Action& action);
void add_trace(CLI::App& app, Action& action);
void add_trace_record(CLI::App& trace, Action& action);
void add_trace_replay(CLI::App& trace, Action& action);
void add_trace_report(CLI::App& trace, Action& action);
void add_trace_score(CLI::App& trace, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_synth(CLI::App& app, Action& action);
void add_cache(CLI::App& app, Action& action);
void add_config(CLI::App& app, Action& action);
void add_version(CLI::App& app, Action& action);

}  // namespace stoker::cli
