// `stoker`: one verb per file; this one only puts them on the command line.
#include <csignal>
#include <cstdio>
#include <exception>

#include "cli/context.h"
#include "cli/exit_code.h"
#include "cli/terminal.h"
#include "shm/base/clock.h"

namespace stoker::cli {
namespace {

constexpr const char* kDescription =
    "Runs mixture-of-experts language models that are larger than the memory of the machine.";
constexpr const char* kFooter =
    "Exit codes: 0 ok, 1 failure, 2 usage, 4 no stack answers, 5 model files, 6 context too long,\n"
    "124 --timeout, 130 Ctrl-C. Documentation: docs/cli.md";

/// Of an option with one value that is given twice, the last one counts: scripts put the user's options
/// after their own. Lists (--stop) go on collecting, positionals go on refusing.
void last_one_counts(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (!option->get_positional() && option->get_items_expected_max() == 1)
      option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  }
  for (CLI::App* verb : app.get_subcommands([](CLI::App*) { return true; })) last_one_counts(*verb);
}

int run_main(int argc, char** argv) {
  CLI::App app(kDescription, "stoker");
  app.footer(kFooter);
  app.require_subcommand(1);
  app.set_help_all_flag("--help-all", "Help of all verbs");
  Action action;
  for (const auto add : {add_run, add_chat, add_serve, add_status, add_doctor, add_verify, add_tokenize,
                         add_detokenize, add_template, add_logits, add_perplexity, add_trace, add_bench,
                         add_synth, add_cache, add_config, add_version}) {
    add(app, action);
  }
  last_one_counts(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return kOk;
  } catch (const CLI::CallForAllHelp&) {
    std::fputs(app.help("", CLI::AppFormatMode::All).c_str(), stdout);
    return kOk;
  } catch (const CLI::ParseError& e) {
    const auto verbs = app.get_subcommands();
    const std::string verb = verbs.empty() ? "" : " " + verbs.front()->get_name();
    return report(kUsage, "usage", std::string(e.what()) + ". See `stoker" + verb + " --help`");
  }
  const SteadyClock clock;
  Terminal terminal;
  Context context{clock, terminal};
  return action(context);
}

}  // namespace
}  // namespace stoker::cli

int main(int argc, char** argv) {
  // A reader that goes away is an error of write(), handled where we write.
  ::signal(SIGPIPE, SIG_IGN);
  try {
    return stoker::cli::run_main(argc, argv);
  } catch (const std::exception& e) {
    return stoker::cli::report(stoker::kFailure, "internal error", e.what());
  } catch (...) {
    return stoker::cli::report(stoker::kFailure, "internal error", "unknown exception");
  }
}
