// `stoker verify`: every byte of a checkpoint read once.
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checksums.h"
#include "checkpoint/verify.h"
#include "cli/context.h"
#include "cli/interrupts.h"
#include "daemons/common/size.h"
#include "gpu-worker/text/tokenizer.h"

namespace stoker::cli {
namespace {

struct VerifyArguments {
  std::string model_dir, checksums;
  VerifyOptions options;
  bool no_hash = false, json = false;
};

nlohmann::ordered_json as_json(const VerifyReport& r, const std::string& tokenizer_problem) {
  nlohmann::ordered_json problems = nlohmann::ordered_json::array();
  for (const VerifyProblem& p : r.problems) {
    problems.push_back(
        {{"file", p.file}, {"tensor", p.tensor}, {"index", p.index}, {"count", p.count}, {"what", p.what}});
  }
  if (!tokenizer_problem.empty())
    problems.push_back({{"file", "tokenizer.json"}, {"what", tokenizer_problem}});
  return {{"good", r.good() && tokenizer_problem.empty()},
          {"tensors", r.tensors},
          {"tensor_bytes", r.tensor_bytes},
          {"files", r.files},
          {"file_bytes", r.file_bytes},
          {"hashed_files", r.hashed_files},
          {"scales", r.scales},
          {"scale_min", r.scale_min},
          {"scale_max", r.scale_max},
          {"problems_total", r.problems_total + (tokenizer_problem.empty() ? 0 : 1)},
          {"problems", problems}};
}

std::string as_text(const VerifyReport& r, const std::string& tokenizer_problem) {
  std::string text = std::to_string(r.tensors) + " tensors, " + format_bytes(r.tensor_bytes) + " in " +
                     std::to_string(r.files) + " file(s), " + std::to_string(r.hashed_files) +
                     " compared by SHA-256\n";
  for (const VerifyProblem& p : r.problems) text += p.text() + "\n";
  if (!tokenizer_problem.empty()) text += tokenizer_problem + "\n";
  return text;
}

/// A second pass, over the experts only: the file for --verify-checksums of the loader.
Result<void> make_checksums(const VerifyArguments& arguments, Context& context, Interrupts& interrupts) {
  STOKER_TRY(const Checkpoint checkpoint, Checkpoint::open(arguments.model_dir));
  const auto written =
      write_checksums(checkpoint, arguments.checksums, [&](std::uint64_t done, std::uint64_t total) {
        context.terminal.progress("checksums · expert " + std::to_string(done) + " of " +
                                  std::to_string(total));
        return interrupts.take() == 0;
      });
  context.terminal.clear_progress();
  return written;
}

int verify(VerifyArguments arguments, Context& context) {
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "verify");
  arguments.options.hash = !arguments.no_hash;
  int signal = 0;
  const auto result =
      verify_checkpoint(arguments.model_dir, arguments.options, [&](const VerifyProgress& progress) {
        if (signal == 0) signal = interrupts->take();
        context.terminal.progress("reading " + arguments.model_dir + " · " +
                                  format_bytes(progress.done_bytes) + " of " +
                                  format_bytes(progress.total_bytes));
        return signal == 0;
      });
  context.terminal.clear_progress();
  if (signal != 0) return report(exit_code_of_signal(signal), "verify", "interrupted");
  if (!result) return report(result.error(), "verify");
  // A checkpoint without a tokenizer runs with --tokens; a broken one is a problem.
  std::string tokenizer_problem;
  if (const auto tokenizer = Tokenizer::load(arguments.model_dir + "/tokenizer.json");
      !tokenizer && tokenizer.error().code != Errc::missing) {
    tokenizer_problem = tokenizer.error().text();
  }
  const std::string text = arguments.json
                               ? as_json(*result, tokenizer_problem)
                                         .dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
                                     "\n"
                               : as_text(*result, tokenizer_problem);
  if (!context.terminal.write_answer(text)) return kFailure;
  if (result->good() && tokenizer_problem.empty()) {
    if (arguments.checksums.empty()) return kOk;
    const auto written = make_checksums(arguments, context, *interrupts);
    return written ? kOk : report(written.error(), "verify --checksums");
  }
  const std::uint64_t problems = result->problems_total + (tokenizer_problem.empty() ? 0 : 1);
  return report(kModel, "verify",
                arguments.model_dir + " has " + std::to_string(problems) +
                    " problem(s). Download the files named above again");
}

}  // namespace

void add_verify(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<VerifyArguments>();
  CLI::App* verb = app.add_subcommand("verify", "Read a whole checkpoint once and check every value");
  verb->add_option("MODEL_DIR", arguments->model_dir, "Checkpoint directory")->required();
  verb->add_option("--threads", arguments->options.threads, "Files read at a time (default: one per CPU)");
  verb->add_option("--checksums", arguments->checksums,
                   "If all is well, write the experts' checksums to this file (for loader.checksums)");
  verb->add_flag("--no-hash", arguments->no_hash,
                 "Do not compare SHA-256 where the Hugging Face cache tells it");
  verb->add_flag("--json", arguments->json, "Print JSON");
  verb->callback([arguments, &action] {
    action = [arguments](Context& context) { return verify(*arguments, context); };
  });
}

}  // namespace stoker::cli
