// `stoker trace record`.
#include <algorithm>
#include <array>
#include <csignal>
#include <memory>

#include "checkpoint/checkpoint.h"
#include "cli/context.h"
#include "cli/generate.h"
#include "cli/input.h"
#include "cli/session.h"
#include "cli/trace_recorder.h"

namespace stoker::cli {

using namespace std::chrono_literals;

namespace {

struct RecordOptions {
  SessionOptions session;
  std::string out, text;
  std::uint32_t window = 512;
  std::uint64_t tokens_max = 0;  ///< 0: until Ctrl-C, or all of the text
};

/// Room for candidates per layer; what the worker does not send stays empty.
constexpr std::uint32_t kCandidates = 32;
constexpr Duration kFirstSampleWait = 10s;
constexpr Duration kSilence = 200ms;

Result<TraceShape> shape_of(const std::string& model_dir) {
  STOKER_TRY(const Checkpoint checkpoint, Checkpoint::open(model_dir));
  STOKER_TRY(const ExpertPlan plan, ExpertPlan::make(checkpoint));
  const ModelConfig& config = checkpoint.config();
  return TraceShape{.layers = config.layers,
                    .experts = config.experts,
                    .top_k = config.experts_per_token,
                    .candidates = std::min(kCandidates, config.experts),
                    .expert_bytes = plan.expert_bytes()};
}

/// Everything that recording needs, and how it ends.
class Recording {
 public:
  Recording(const RecordOptions& options, Context& context, Interrupts& interrupts, Session& session,
            TraceRecorder& recorder, TraceWriter& writer)
      : options_(options),
        context_(context),
        interrupts_(interrupts),
        session_(session),
        recorder_(recorder),
        writer_(writer) {}

  /// The text, token by token, as if the model had written it. Returns the signal that ended it, or 0.
  Result<int> text(const std::vector<std::uint32_t>& ids) {
    STOKER_TRY(const int signal, wait_for_samples(ids));
    if (signal != 0) return signal;
    for (std::size_t begin = 0; begin + 1 < ids.size(); begin += options_.window) {
      const std::size_t end = std::min(ids.size(), begin + options_.window);
      STOKER_TRY(const int ended, decode(ids, begin, end, &writer_));
      if (ended != 0) return ended;
      context_.terminal.progress(std::to_string(end) + " of " + std::to_string(ids.size()) + " tokens");
    }
    return 0;
  }

  /// Whatever the stack decodes for others.
  Result<int> listen() {
    context_.terminal.note("stoker: recording what " + session_.run_dir() + " decodes; Ctrl-C ends it");
    for (;;) {
      std::array items{PollItem{.socket = &recorder_.socket()}, PollItem{.fd = interrupts_.fd()}};
      STOKER_TRY_VOID(wait_readable(items, 1s));
      STOKER_TRY_VOID(recorder_.drain(&writer_));
      context_.terminal.progress(std::to_string(recorder_.tokens()) + " tokens");
      if (const int signal = interrupts_.take(); signal != 0) return signal == SIGINT ? 0 : signal;
      if (options_.tokens_max > 0 && recorder_.tokens() >= options_.tokens_max) return 0;
      if (!worker_listens(session_.run_dir())) return fail(Errc::peer_gone, "the worker has ended");
    }
  }

 private:
  Result<int> decode(const std::vector<std::uint32_t>& ids, std::size_t begin, std::size_t end,
                     TraceWriter* to) {
    if (end - begin < 2) return 0;
    wire::GenerateRequest request;
    request.set_id(next_request_id(++requests_));
    request.mutable_tokens()->add_ids(ids[begin]);
    for (std::size_t i = begin + 1; i < end; ++i) request.add_forced(ids[i]);
    GenerateHooks hooks;
    Result<void> drained;
    const std::uint64_t whole_before = recorder_.tokens();
    hooks.on_token = [&](const wire::TokenEvent&) {
      drained = recorder_.drain(to);
      return drained.has_value();
    };
    STOKER_TRY(const auto outcome,
               generate(session_.client(), request, hooks, interrupts_, std::nullopt, context_.clock));
    STOKER_TRY_VOID(drained);
    // The first token is prefilled and the last one not fed: neither is a decode step.
    STOKER_TRY_VOID(catch_up(whole_before + (end - begin - 2), to));
    return outcome.end == GenerateOutcome::End::signalled ? outcome.signal : 0;
  }

  /// Samples travel on another socket than tokens and may come later. Silence means that they were dropped.
  Result<void> catch_up(std::uint64_t tokens, TraceWriter* to) {
    for (bool news = true; news && recorder_.tokens() < tokens;) {
      std::array items{PollItem{.socket = &recorder_.socket()}};
      STOKER_TRY_VOID(wait_readable(items, kSilence));
      news = items[0].readable;
      STOKER_TRY_VOID(recorder_.drain(to));
    }
    return {};
  }

  /// A subscription takes a moment to be known: until samples come, what is decoded is not recorded.
  Result<int> wait_for_samples(const std::vector<std::uint32_t>& ids) {
    const Duration began = context_.clock.now();
    while (recorder_.samples() == 0) {
      if (context_.clock.now() - began > kFirstSampleWait) {
        return fail(Errc::peer_gone, "the worker sends no routing samples; is it of another version?");
      }
      STOKER_TRY(const int signal, decode(ids, 0, std::min<std::size_t>(ids.size(), 3), nullptr));
      if (signal != 0) return signal;
    }
    recorder_.restart();
    return 0;
  }

  const RecordOptions& options_;
  Context& context_;
  Interrupts& interrupts_;
  Session& session_;
  TraceRecorder& recorder_;
  TraceWriter& writer_;
  unsigned requests_ = 0;
};

Result<std::vector<std::uint32_t>> text_tokens(const RecordOptions& options, const std::string& model_dir) {
  STOKER_TRY(TextIds text, read_text_ids(options.text, model_dir, AddedTokens::match, options.tokens_max));
  if (text.ids.size() < 3)
    return fail(Errc::invalid, options.text + " is too short: at least 3 tokens are needed");
  return std::move(text.ids);
}

/// The signal that ended the recording, or 0.
Result<int> record_to(const RecordOptions& options, Context& context, Interrupts& interrupts,
                      Session& session) {
  STOKER_TRY(const TraceShape shape, shape_of(session.model_dir()));
  std::vector<std::uint32_t> ids;
  if (!options.text.empty()) {
    STOKER_TRY(ids, text_tokens(options, session.model_dir()));
  }
  STOKER_TRY(TraceRecorder recorder, TraceRecorder::connect(session.run_dir(), shape));
  STOKER_TRY(TraceWriter writer, TraceWriter::create(options.out, shape));
  Recording recording(options, context, interrupts, session, recorder, writer);
  STOKER_TRY(const int signal, ids.empty() ? recording.listen() : recording.text(ids));
  STOKER_TRY_VOID(writer.close());
  context.terminal.clear_progress();
  context.terminal.note("stoker: " + std::to_string(recorder.tokens()) + " tokens in " + options.out +
                        (recorder.incomplete() > 0 ? ", " + std::to_string(recorder.incomplete()) +
                                                         " more came in part and were left out"
                                                   : ""));
  return signal;
}

int record(RecordOptions& options, Context& context) {
  auto interrupts = Interrupts::open();
  if (!interrupts) return report(interrupts.error(), "trace record");
  if (options.text.empty() && !options.session.stack.model_dir.empty()) {
    return report(kUsage, "trace record",
                  "without --text it listens to a running stack; leave MODEL_DIR out, or give --text FILE");
  }
  auto session = Session::open(context, *interrupts, options.session);
  if (!session) return report(session.error());
  if (options.text.empty() && session->is_private()) {
    return report(kUnreachable, "trace record",
                  "no stack is running that could be listened to; give --text FILE");
  }
  const auto signal = record_to(options, context, *interrupts, *session);
  if (!signal) return report(signal.error(), "trace record");
  return *signal == 0 ? kOk : exit_code_of_signal(*signal);
}

}  // namespace

void add_trace_record(CLI::App& trace, Action& action) {
  auto options = std::make_shared<RecordOptions>();
  CLI::App* verb = trace.add_subcommand("record", "Record which experts the router chose, token by token");
  verb->add_option("MODEL_DIR", options->session.stack.model_dir, "Checkpoint directory");
  verb->add_option("-o,--out", options->out, "Trace file to write")->required();
  verb->add_option("--text", options->text,
                   "Decode this text token by token; without it, listen to the running stack");
  verb->add_option("--window", options->window, "With --text: tokens per request; each starts from nothing")
      ->check(CLI::Range(3U, 1U << 20))
      ->capture_default_str();
  verb->add_option("-n,--max-tokens", options->tokens_max, "Stop after N tokens");
  add_session_options(*verb, options->session);
  verb->callback([options, &action] { action = [options](Context& c) { return record(*options, c); }; });
}

}  // namespace stoker::cli
