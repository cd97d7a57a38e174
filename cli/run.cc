// `stoker run`: one prompt, one answer.
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "cli/generate.h"
#include "cli/input.h"
#include "cli/sampling_options.h"
#include "cli/session.h"
#include "cli/statistics.h"
#include "daemons/common/limits.h"

namespace stoker::cli {
namespace {

struct RunOptions {
  SessionOptions session;
  SamplingOptions sampling;
  std::vector<std::string> positional;  ///< [MODEL_DIR] [PROMPT]
  std::string file, system, tokens, forced_file, logits_out;
  bool raw = false, json = false, has_system = false;
  double timeout_s = 0;
};

/// One positional is a model directory if it is a directory, else a prompt for a running stack.
void split_positional(RunOptions& options, std::string& prompt) {
  std::error_code error;
  if (options.positional.size() == 2) {
    options.session.stack.model_dir = options.positional[0];
    prompt = options.positional[1];
  } else if (options.positional.size() == 1) {
    const std::string& only = options.positional[0];
    const bool other_input = !options.file.empty() || !options.tokens.empty();
    const bool directory = std::filesystem::is_directory(only, error);
    (directory || other_input ? options.session.stack.model_dir : prompt) = only;
  }
}

/// Prompt argument, then the file, then piped stdin, joined by line breaks.
Result<std::string> gather_prompt(const RunOptions& options, std::string prompt) {
  const auto append = [&](const std::string& more) {
    if (!prompt.empty() && !more.empty() && prompt.back() != '\n') prompt += '\n';
    prompt += more;
  };
  if (!options.file.empty()) {
    STOKER_TRY(const std::string text, read_input(options.file));
    append(text);
  }
  if (options.file != "-" && stdin_is_piped()) {
    STOKER_TRY(const std::string text, read_input("-"));
    append(text);
  }
  return prompt;
}

Result<void> fill_input(const RunOptions& options, const std::string& prompt, const std::string& model_dir,
                        wire::GenerateRequest& request) {
  if (!options.tokens.empty()) {
    STOKER_TRY(const auto ids, parse_ids(options.tokens));
    for (const std::uint32_t id : ids) request.mutable_tokens()->add_ids(id);
    return {};
  }
  STOKER_TRY_VOID(check_utf8(prompt, "the prompt"));
  STOKER_TRY_VOID(check_utf8(options.system, "the system message"));
  for (const std::string& stop : options.sampling.stop) STOKER_TRY_VOID(check_utf8(stop, "a stop string"));
  if (options.raw || !has_chat_template(model_dir)) {
    if (options.has_system && !options.raw) {
      return fail(Errc::invalid, "--system needs a chat template, and " + model_dir + " has none");
    }
    request.set_prompt(prompt);
    return {};
  }
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  if (options.has_system) messages.push_back({{"role", "system"}, {"content", options.system}});
  messages.push_back({{"role", "user"}, {"content", prompt}});
  request.set_conversation_json(nlohmann::ordered_json{{"messages", messages}}.dump());
  return {};
}

Result<void> fill_forced(const RunOptions& options, wire::GenerateRequest& request) {
  if (!options.logits_out.empty()) request.set_raw_logits_of_steps(true);
  if (options.forced_file.empty()) return {};
  STOKER_TRY(const auto ids, read_ids(options.forced_file));
  for (const std::uint32_t id : ids) request.add_forced(id);
  return {};
}

/// Collects what --json prints; streams text otherwise.
class Answer {
 public:
  Answer(Context& context, bool json) : terminal_(context.terminal), json_(json) {}

  bool on_token(const wire::TokenEvent& event) {
    logits_ += event.logits();
    if (!json_) return terminal_.write_answer(event.text());
    text_ += event.text();
    tokens_.push_back(event.token());
    if (!event.has_logprob()) return true;
    nlohmann::ordered_json entry = to_json(event.logprob());
    entry["top"] = nlohmann::ordered_json::array();
    for (const auto& top : event.top()) entry["top"].push_back(to_json(top));
    logprobs_.push_back(std::move(entry));
    return true;
  }
  void on_progress(const wire::ProgressEvent& event) {
    if (event.queue_position() > 0) {
      terminal_.progress("waiting, " + std::to_string(event.queue_position()) + " before this one");
    } else {
      terminal_.progress("prompt " + std::to_string(event.prompt_done()) + " of " +
                         std::to_string(event.prompt_total()) + " tokens");
    }
  }
  /// False when stdout has gone.
  bool finish(const wire::DoneEvent& done, const std::string& id) {
    if (!json_) {
      const bool written = terminal_.write_answer(done.text());
      terminal_.end_answer();
      return written;
    }
    nlohmann::ordered_json out{{"id", id},
                               {"text", text_ + done.text()},
                               {"tokens", tokens_},
                               {"finish_reason", done.finish_reason()},
                               {"seed", done.stats().seed()},
                               {"stats", statistics_json(done.stats())}};
    if (!logprobs_.empty()) out["logprobs"] = logprobs_;
    return terminal_.write_answer(out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  }

  /// Raw logits of every step, when they were asked for.
  [[nodiscard]] const std::string& logits() const { return logits_; }

 private:
  static nlohmann::ordered_json to_json(const wire::TokenLogprob& t) {
    return {{"id", t.id()}, {"logprob", t.logprob()}, {"text", t.text()}};
  }
  Terminal& terminal_;
  bool json_;
  std::string text_, logits_;
  std::vector<std::uint32_t> tokens_;
  nlohmann::ordered_json logprobs_ = nlohmann::ordered_json::array();
};

int conclude(Context& context, const GenerateOutcome& outcome, Answer& answer, const std::string& id) {
  const bool written = !outcome.done || answer.finish(*outcome.done, id);
  context.terminal.end_answer();
  if (outcome.done) context.terminal.dim(statistics_line(outcome.done->stats()));
  switch (outcome.end) {
    case GenerateOutcome::End::done:
      break;
    case GenerateOutcome::End::signalled:
      return exit_code_of_signal(outcome.signal);
    case GenerateOutcome::End::timed_out:
      return report(kTimeout, "--timeout", "the answer was not complete in time");
    case GenerateOutcome::End::stopped_by_hook:
      return kFailure;  // stdout has gone; there is nobody to tell
  }
  return written ? kOk : report(kFailure, "stdout", "the answer could not be written");
}

int run(RunOptions options, Context& context) {
  if (options.sampling.logprobs > 0 && !options.json) {
    return report(kUsage, "--logprobs", "log-probabilities are part of the JSON answer only; add --json");
  }
  std::string argument;
  split_positional(options, argument);
  std::string prompt;
  if (options.tokens.empty()) {
    auto gathered = gather_prompt(options, argument);
    if (!gathered) return report(gathered.error(), "prompt");
    prompt = *std::move(gathered);
    if (prompt.empty()) {
      return report(kUsage, "run", "there is no prompt. Give PROMPT, -f FILE, --tokens or text on stdin");
    }
  }
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "run");
  if (options.timeout_s > 0) {
    options.session.deadline = context.clock.now() + std::chrono::duration_cast<Duration>(
                                                         std::chrono::duration<double>(options.timeout_s));
  }
  auto session = Session::open(context, *interrupts, options.session);
  if (!session) return report(session.error());

  wire::GenerateRequest request;
  request.set_id(next_request_id(1));
  options.sampling.apply_to(request);
  if (auto filled = fill_input(options, prompt, session->model_dir(), request); !filled) {
    return report(filled.error(), "prompt");
  }
  if (auto filled = fill_forced(options, request); !filled) return report(filled.error(), "--forced");
  Answer answer(context, options.json);
  GenerateHooks hooks;
  hooks.on_token = [&](const wire::TokenEvent& event) { return answer.on_token(event); };
  hooks.on_progress = [&](const wire::ProgressEvent& event) { answer.on_progress(event); };
  const auto outcome =
      generate(session->client(), request, hooks, *interrupts, options.session.deadline, context.clock);
  context.terminal.clear_progress();
  if (!outcome) {
    context.terminal.end_answer();
    return report(outcome.error(), "worker");
  }
  if (!options.logits_out.empty())
    if (auto written = write_file(options.logits_out, answer.logits()); !written)
      return report(written.error(), "--logits-out");
  return conclude(context, *outcome, answer, request.id());
}

}  // namespace

void add_run(CLI::App& app, Action& action) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* verb = app.add_subcommand("run", "Answer one prompt, then stop");
  verb->add_option("MODEL_DIR PROMPT", options->positional,
                   "Checkpoint directory (not needed when a stack is running) and prompt")
      ->expected(0, 2);
  verb->add_option("-f,--file", options->file, "Read the prompt from a file (- is stdin)");
  auto* system = verb->add_option("-s,--system", options->system, "System message");
  auto* raw = verb->add_flag("--raw", options->raw, "Plain text: no chat template")->excludes(system);
  verb->add_option("--tokens", options->tokens, "Prompt as token ids: 1,5,9")
      ->excludes(system)
      ->excludes(raw);
  verb->add_option("--forced", options->forced_file,
                   "Decode the token ids in this file instead of sampling (benchmarks, tests)");
  verb->add_option("--logits-out", options->logits_out,
                   "Also write the logits of every generated token to this file (little-endian fp32)");
  verb->add_flag("--json", options->json, "Print one JSON object instead of streaming text");
  verb->add_option("--timeout", options->timeout_s, "Give up after this many seconds (exit code 124)")
      ->check(CLI::PositiveNumber);
  add_sampling_options(*verb, options->sampling);
  // Not one of chat's: it has nowhere to show them.
  verb->add_option("--logprobs", options->sampling.logprobs, "Alternatives per token; needs --json")
      ->check(CLI::Range(0U, limits::kLogprobs))
      ->group("Sampling");
  add_session_options(*verb, options->session);
  verb->callback([options, system, &action] {
    options->has_system = system->count() > 0;
    action = [options](Context& context) { return run(*options, context); };
  });
}

}  // namespace stoker::cli
