// `stoker perplexity FILE`: how well the model predicts a text, through the real stack.
#include <cmath>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "cli/generate.h"
#include "cli/input.h"
#include "cli/session.h"
#include "cli/statistics.h"

namespace stoker::cli {
namespace {

struct PerplexityOptions {
  SessionOptions session;
  std::vector<std::string> positional;  ///< [MODEL_DIR] FILE
  std::string file;
  std::uint32_t window = 2048;
  std::uint64_t tokens_max = 0;  ///< 0: all of the file
  bool json = false, plain = false;
};

/// Running sums over scored tokens; natural logarithms.
struct Score {
  std::uint64_t tokens = 0, windows = 0;
  double nats = 0, nats_squared = 0;
  double seconds = 0;
  std::uint64_t experts_pool = 0, experts_disk = 0;

  void add(double logprob) {
    ++tokens;
    nats -= logprob;
    nats_squared += logprob * logprob;
  }
  [[nodiscard]] double mean() const { return nats / static_cast<double>(tokens); }
  /// Standard error of the mean, tokens taken as independent.
  [[nodiscard]] double error() const {
    const double variance = nats_squared / static_cast<double>(tokens) - mean() * mean();
    return std::sqrt(std::max(variance, 0.0) / static_cast<double>(tokens));
  }
};

/// Logarithms of one window's tokens 1.. in order; refuses gaps and what no probability can be.
struct WindowScores {
  std::uint32_t next = 1;
  bool broken = false;
  Score& score;

  bool add(const wire::ScoreEvent& event) {
    broken = broken || event.first_position() != next;
    for (const float logprob : event.logprobs()) {
      broken = broken || !std::isfinite(logprob) || logprob > 1e-3F;
      score.add(static_cast<double>(logprob));
    }
    next += static_cast<std::uint32_t>(event.logprobs_size());
    return !broken;
  }
};

using Ids = std::vector<std::uint32_t>;

/// Windows overlap by one token: each but the file's first is scored exactly once. Nothing: a signal came.
tl::expected<std::optional<int>, ExitReport> score_window(Session& session, const Ids& ids, std::size_t begin,
                                                          std::size_t end, Interrupts& interrupts,
                                                          Context& context, Score& score) {
  wire::GenerateRequest request;
  request.set_id(next_request_id(static_cast<unsigned>(score.windows + 1)));
  for (std::size_t i = begin; i < end; ++i) request.mutable_tokens()->add_ids(ids[i]);
  request.set_score(true);
  WindowScores scores{.score = score};
  GenerateHooks hooks;
  hooks.on_score = [&](const wire::ScoreEvent& event) { return scores.add(event); };
  const auto outcome = generate(session.client(), request, hooks, interrupts, std::nullopt, context.clock);
  if (!outcome) return tl::unexpected(ExitReport::of(outcome.error(), "worker"));
  if (outcome->end == GenerateOutcome::End::signalled) return exit_code_of_signal(outcome->signal);
  if (scores.broken || scores.next != end - begin) {
    return tl::unexpected(ExitReport{kFailure, "worker",
                                     "sent probabilities of " + std::to_string(scores.next - 1) +
                                         " tokens, not of " + std::to_string(end - begin - 1) +
                                         " in order; is it of another version?"});
  }
  ++score.windows;
  score.seconds += outcome->done->stats().prefill_seconds();
  score.experts_pool += outcome->done->stats().experts_pool() + outcome->done->stats().experts_hinted();
  score.experts_disk += outcome->done->stats().experts_disk();
  return std::nullopt;
}

void split_positional(PerplexityOptions& options) {
  options.file = options.positional.back();
  if (options.positional.size() == 2) options.session.stack.model_dir = options.positional.front();
}

/// The text's ids, and the bytes that its scored tokens stand for.
Result<Ids> read_tokens(const PerplexityOptions& options, const std::string& model_dir,
                        std::uint64_t& bytes) {
  STOKER_TRY(TextIds text,
             read_text_ids(options.file, model_dir, options.plain ? AddedTokens::ignore : AddedTokens::match,
                           options.tokens_max));
  const Ids& ids = text.ids;
  if (ids.size() < 2) {
    return fail(Errc::invalid, options.file + " is " + std::to_string(ids.size()) +
                                   " tokens; the first one is never scored, so at least 2 are needed");
  }
  bytes = 0;
  for (std::size_t i = 1; i < ids.size(); ++i) bytes += text.tokenizer.token_bytes(ids[i]).size();
  return std::move(text.ids);
}

nlohmann::ordered_json to_json(const PerplexityOptions& options, const Score& score, std::uint64_t bytes) {
  return {{"file", options.file},
          {"window", options.window},
          {"windows", score.windows},
          {"tokens", score.tokens},
          {"bytes", bytes},
          {"nats_per_token", score.mean()},
          {"nats_per_token_error", score.error()},
          {"perplexity", std::exp(score.mean())},
          {"bits_per_byte", score.nats / std::log(2.0) / static_cast<double>(bytes)},
          {"tokens_per_second", static_cast<double>(score.tokens) / score.seconds},
          {"experts_pool", score.experts_pool},
          {"experts_disk", score.experts_disk}};
}

std::string to_line(const Score& score, std::uint64_t bytes) {
  return std::to_string(score.tokens) + " tokens · " + number_text("%.4f", score.mean()) +
         number_text(" ± %.4f nats/token", score.error()) +
         number_text(" · perplexity %.3f", std::exp(score.mean())) +
         number_text(" · %.4f bits/byte", score.nats / std::log(2.0) / static_cast<double>(bytes)) +
         number_text(" · %.1f tok/s", static_cast<double>(score.tokens) / score.seconds) + "\n";
}

int perplexity(PerplexityOptions& options, Context& context) {
  split_positional(options);
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "perplexity");
  // Before a stack is started for it: a file that is not there should not cost a minute.
  std::error_code missing;
  if (options.file != "-" && !std::filesystem::is_regular_file(options.file, missing)) {
    return report(kUsage, "perplexity", options.file + " is not a file");
  }
  auto session = Session::open(context, *interrupts, options.session);
  if (!session) return report(session.error());
  std::uint64_t bytes = 0;
  const auto ids = read_tokens(options, session->model_dir(), bytes);
  if (!ids) return report(ids.error(), "perplexity");

  Score score;
  for (std::size_t begin = 0; begin + 1 < ids->size(); begin += options.window - 1) {
    const std::size_t end = std::min(ids->size(), begin + options.window);
    const auto stopped = score_window(*session, *ids, begin, end, *interrupts, context, score);
    if (!stopped) return report(stopped.error());
    if (*stopped) return **stopped;
    context.terminal.progress(std::to_string(end) + " of " + std::to_string(ids->size()) + " tokens" +
                              number_text(" · perplexity %.3f", std::exp(score.mean())));
  }
  context.terminal.clear_progress();
  const std::string out = options.json ? to_json(options, score, bytes).dump() + "\n" : to_line(score, bytes);
  return context.terminal.write_answer(out) ? kOk
                                            : report(kFailure, "stdout", "the result could not be written");
}

}  // namespace

void add_perplexity(CLI::App& app, Action& action) {
  auto options = std::make_shared<PerplexityOptions>();
  CLI::App* verb =
      app.add_subcommand("perplexity", "How well the model predicts a text (nats/token, bits/byte)");
  verb->add_option("ARGS", options->positional, "[MODEL_DIR] FILE; FILE may be - for stdin")
      ->required()
      ->expected(1, 2)
      ->type_name("");
  verb->add_option("--window", options->window,
                   "Tokens per forward; each window starts from nothing and overlaps the last by one token")
      ->check(CLI::Range(2U, 1U << 20))
      ->capture_default_str();
  verb->add_option("-n,--max-tokens", options->tokens_max, "Only the first N tokens of the file");
  verb->add_flag("--no-added-tokens", options->plain, "Take <|im_end|> and the like as plain text");
  verb->add_flag("--json", options->json, "Print JSON");
  add_session_options(*verb, options->session);
  verb->callback(
      [options, &action] { action = [options](Context& context) { return perplexity(*options, context); }; });
}

}  // namespace stoker::cli
