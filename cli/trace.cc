// `stoker trace record`, `report` and `replay`.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "cli/context.h"
#include "cli/generate.h"
#include "cli/input.h"
#include "cli/session.h"
#include "cli/statistics.h"
#include "cli/trace_recorder.h"
#include "cli/trace_tiers.h"
#include "trace/foreign.h"
#include "trace/html_report.h"
#include "trace/replay.h"
#include "trace/statistics.h"

namespace stoker::cli {

using namespace std::chrono_literals;

namespace {

struct TraceOptions {
  SessionOptions session;
  std::string out, text, file, html;
  std::uint32_t window = 512;
  std::uint64_t tokens_max = 0;  ///< 0: until Ctrl-C, or all of the text
  std::vector<std::string> policies{"lru", "lfu-decay", "lfru", "stoker", "belady"};
  std::vector<std::uint32_t> slots_per_layer;
  std::size_t skip = 0;
  bool per_layer = false, json = false;
  std::vector<std::uint32_t> vram_slots;
  std::uint64_t expert_bytes = 0;
  std::uint32_t second_touch = VramCacheOptions{}.second_touch_within;
  std::string pool_hears = "misses", copies = "in-order";
  std::vector<double> lanes{0, 0};
};

// ---- record ----

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
  Recording(const TraceOptions& options, Context& context, Interrupts& interrupts, Session& session,
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

  const TraceOptions& options_;
  Context& context_;
  Interrupts& interrupts_;
  Session& session_;
  TraceRecorder& recorder_;
  TraceWriter& writer_;
  unsigned requests_ = 0;
};

Result<std::vector<std::uint32_t>> text_tokens(const TraceOptions& options, const std::string& model_dir) {
  STOKER_TRY(TextIds text, read_text_ids(options.text, model_dir, AddedTokens::match, options.tokens_max));
  if (text.ids.size() < 3)
    return fail(Errc::invalid, options.text + " is too short: at least 3 tokens are needed");
  return std::move(text.ids);
}

/// The signal that ended the recording, or 0.
Result<int> record_to(const TraceOptions& options, Context& context, Interrupts& interrupts,
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

int record(TraceOptions& options, Context& context) {
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

// ---- report ----

std::string cell(const char* format, double value) {
  return std::isnan(value) ? "-" : number_text(format, value);
}

std::string row(const std::string& name, const LayerStatistics& s) {
  std::string line =
      "| " + name + " | " + cell("%.2f", s.entropy_bits) + " | " + std::to_string(s.experts_used);
  for (const double value : {s.top10, s.top25, s.top50, s.overlap, s.recall_k, s.recall_2k, s.recall_all})
    line += " | " + cell("%.3f", value);
  return line + " |\n";
}

nlohmann::ordered_json to_json(const LayerStatistics& s) {
  const auto figure = [](double value) {
    return std::isnan(value) ? nlohmann::ordered_json() : nlohmann::ordered_json(value);
  };
  return {{"entropy_bits", s.entropy_bits},
          {"experts_used", s.experts_used},
          {"top10", s.top10},
          {"top25", s.top25},
          {"top50", s.top50},
          {"overlap", figure(s.overlap)},
          {"recall_k", figure(s.recall_k)},
          {"recall_2k", figure(s.recall_2k)},
          {"recall_all", figure(s.recall_all)}};
}

std::string as_markdown(const Trace& trace, const std::vector<LayerStatistics>& layers) {
  const TraceShape& s = trace.shape;
  const TierUses uses = tier_uses(trace);
  std::string tiers;
  if (uses.all() > 0) {
    const auto share = [&](std::uint64_t n) {
      return cell("%.1f %%", 100.0 * static_cast<double>(n) / static_cast<double>(uses.all()));
    };
    tiers = "; while recording: pool " + share(uses.pool + uses.hinted) + " (prefetched " +
            share(uses.hinted) + "), disk " + share(uses.disk);
  }
  std::string out = std::to_string(trace.tokens.size()) + " tokens, " + std::to_string(s.layers) +
                    " layers, top " + std::to_string(s.top_k) + " of " + std::to_string(s.experts) +
                    " experts (entropy at most " + cell("%.2f", std::log2(s.experts)) + " bits)" + tiers +
                    "\n\n" +
                    "| layer | entropy, bits | experts used | top 10 % | top 25 % | top 50 % | overlap with "
                    "the token before"
                    " | look-ahead recall @" +
                    std::to_string(s.top_k) + " | @" + std::to_string(2 * s.top_k) +
                    " | @all |\n|---|---|---|---|---|---|---|---|---|---|\n";
  for (std::size_t layer = 0; layer < layers.size(); ++layer)
    out += row(std::to_string(layer), layers[layer]);
  return out + row("mean", mean_of(layers));
}

nlohmann::ordered_json as_json(const Trace& trace, const std::vector<LayerStatistics>& layers) {
  const TraceShape& s = trace.shape;
  const TierUses uses = tier_uses(trace);
  nlohmann::ordered_json out{
      {"tokens", trace.tokens.size()},
      {"layers", s.layers},
      {"experts", s.experts},
      {"top_k", s.top_k},
      {"candidates", s.candidates},
      {"expert_bytes", s.expert_bytes},
      {"uses", {{"pool", uses.pool}, {"prefetched", uses.hinted}, {"disk", uses.disk}}},
      {"mean", to_json(mean_of(layers))}};
  for (const LayerStatistics& layer : layers) out["per_layer"].push_back(to_json(layer));
  return out;
}

tl::expected<Trace, ExitReport> load(const TraceOptions& options, Context& context) {
  auto trace = read_any_trace(options.file);
  if (!trace) return tl::unexpected(ExitReport::of(trace.error(), "trace"));
  if (trace->tokens.empty()) return tl::unexpected(ExitReport{kModel, options.file, "holds no token"});
  if (trace->bytes_ignored > 0) {
    context.terminal.note("stoker: " + options.file + ": the last record is cut short; its " +
                          std::to_string(trace->bytes_ignored) + " bytes are left out");
  }
  return *std::move(trace);
}

bool skips_all(const TraceOptions& options, const Trace& trace) {
  return options.skip >= trace.tokens.size();
}
int report_skip(const Trace& trace) {
  return report(kUsage, "--skip", "the trace has only " + std::to_string(trace.tokens.size()) + " tokens");
}

/// Pool sizes for a curve: from a sixteenth to half of the experts.
std::vector<std::uint32_t> curve_sizes(const TraceOptions& options, const TraceShape& shape) {
  std::vector<std::uint32_t> sizes = options.slots_per_layer;
  if (sizes.empty())
    for (const std::uint32_t sixteenths : {1U, 2U, 3U, 4U, 6U, 8U})
      sizes.push_back(std::max(1U, shape.experts * sixteenths / 16));
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

int write_html(const TraceOptions& options, const Trace& trace, Context& context) {
  if (skips_all(options, trace)) return report_skip(trace);
  const std::string page =
      html_report(trace, {.title = "Routing trace " + options.file,
                          .slots_per_layer = curve_sizes(options, trace.shape),
                          .per_layer = options.per_layer,
                          .skip = options.skip,
                          .progress = [&](const std::string& what) { context.terminal.progress(what); }});
  context.terminal.clear_progress();
  errno = 0;
  std::ofstream file(options.html, std::ios::binary | std::ios::trunc);
  file << page;
  file.close();
  if (!file) return report(kFailure, options.html, std::string("cannot write it: ") + std::strerror(errno));
  context.terminal.note("stoker: wrote " + options.html);
  return kOk;
}

int describe(const TraceOptions& options, Context& context) {
  const auto trace = load(options, context);
  if (!trace) return report(trace.error());
  if (!options.html.empty()) return write_html(options, *trace, context);
  const auto layers = layer_statistics(*trace);
  const std::string out = options.json ? as_json(*trace, layers).dump() + "\n" : as_markdown(*trace, layers);
  return context.terminal.write_answer(out) ? kOk
                                            : report(kFailure, "stdout", "the report could not be written");
}

// ---- replay ----

/// Slots per layer to try: what was asked for, or an eighth, a quarter, half of the experts.
std::vector<std::uint32_t> sizes_of(const TraceOptions& options, const TraceShape& shape) {
  if (!options.slots_per_layer.empty()) return options.slots_per_layer;
  return {std::max(1U, shape.experts / 8), std::max(1U, shape.experts / 4), std::max(1U, shape.experts / 2)};
}

TieredReplayOptions tiers_of(const TraceOptions& options) {
  TieredReplayOptions how{.skip = options.skip, .vram = {.second_touch_within = options.second_touch}};
  how.cpu_rate = options.lanes[0];
  how.copy_rate = options.lanes[1];
  if (options.copies == "hottest") how.copies = CopyChoice::hottest;
  if (options.pool_hears == "all-uses") how.pool_hears = PoolHears::all_uses;
  if (options.pool_hears == "exclusive") how.pool_hears = PoolHears::exclusive;
  return how;
}

int replay_all(const TraceOptions& options, Context& context) {
  const auto trace = load(options, context);
  if (!trace) return report(trace.error());
  if (skips_all(options, *trace)) return report_skip(*trace);
  const auto sizes = sizes_of(options, trace->shape);
  if (!options.vram_slots.empty()) {
    return replay_tiers(*trace,
                        {.file = options.file,
                         .vram_slots = options.vram_slots,
                         .slots_per_layer = sizes,
                         .expert_bytes = options.expert_bytes,
                         .how = tiers_of(options),
                         .json = options.json},
                        context);
  }
  nlohmann::ordered_json json{
      {"file", options.file}, {"tokens", trace->tokens.size()}, {"replays", nlohmann::json::array()}};
  std::string head = "| hit rate, % at slots per layer", rule = "|---", body;
  for (const std::uint32_t size : sizes) {
    head += " | " + std::to_string(size);
    rule += "|---";
  }
  for (const std::string& name : options.policies) {
    const auto policy = parse_policy(name);
    if (!policy)
      return report(kUsage, "--policy", name + " is not one of lru, lfu-decay, lfru, stoker, belady");
    body += "| " + name;
    for (const std::uint32_t size : sizes) {
      context.terminal.progress(name + ", " + std::to_string(size) + " slots per layer");
      const ReplayOptions how{.policy = *policy,
                              .slots = size * trace->shape.layers,
                              .per_layer = options.per_layer,
                              .skip = options.skip};
      const ReplayResult result = replay(*trace, how);
      body += " | " + cell("%.1f", 100 * result.hit_rate());
      json["replays"].push_back({{"policy", name},
                                 {"slots", how.slots},
                                 {"per_layer", options.per_layer},
                                 {"hits", result.hits},
                                 {"misses", result.misses},
                                 {"compulsory", result.compulsory},
                                 {"hit_rate", result.hit_rate()}});
    }
    body += " |\n";
  }
  context.terminal.clear_progress();
  const std::string out = options.json ? json.dump() + "\n" : head + " |\n" + rule + "|\n" + body;
  return context.terminal.write_answer(out) ? kOk
                                            : report(kFailure, "stdout", "the result could not be written");
}

/// What a replay needs besides policies. They make no sense without `needed`, if given.
void add_cache_options(CLI::App& verb, TraceOptions& options, const std::string& sizes,
                       CLI::Option* needed = nullptr) {
  CLI::Option* slots = verb.add_option("--slots-per-layer", options.slots_per_layer,
                                       "Cache sizes, N[,N...] (default: " + sizes + " of the experts)")
                           ->delimiter(',')
                           ->check(CLI::Range(1U, 65535U));
  CLI::Option* skip = verb.add_option("--skip", options.skip,
                                      "Tokens at the start that are replayed but not counted (cold start)");
  CLI::Option* per_layer = verb.add_flag("--per-layer", options.per_layer,
                                         "Each layer has its own slots, instead of one pool (not stoker)");
  if (needed == nullptr) return;
  for (CLI::Option* option : {slots, skip, per_layer}) option->needs(needed);
}

/// Device memory in front of the pool, instead of policies side by side.
void add_tier_options(CLI::App& verb, TraceOptions& options) {
  CLI::Option* vram = verb.add_option("--vram-slots", options.vram_slots,
                                      "Slots in device memory for the whole model, N[,N...]: replays the "
                                      "worker's VRAM cache before a pool with the loader's policy")
                          ->delimiter(',')
                          ->check(CLI::Range(0U, 1U << 24))
                          ->excludes(verb.get_option("--policy"))
                          ->excludes(verb.get_option("--per-layer"));
  verb.add_option("--lanes", options.lanes,
                  "CPU,PCIE: speeds of the two ways to compute what is not in device memory, in any unit "
                  "(without: all "
                  "of it is copied)")
      ->delimiter(',')
      ->expected(2)
      ->check(CLI::PositiveNumber)
      ->needs(vram);
  verb.add_option("--copies", options.copies, "Which experts are copied: in-order, or the hottest")
      ->check(CLI::IsMember({"in-order", "hottest"}))
      ->capture_default_str()
      ->needs(vram);
  verb.add_option("--second-touch", options.second_touch,
                  "Steps between two touches for a copied expert to stay; 0: each stays")
      ->capture_default_str()
      ->needs(vram);
  verb.add_option(
          "--pool-hears", options.pool_hears,
          "What the pool's policy learns of VRAM hits: misses (nothing), all-uses, exclusive (nothing, "
          "and a promoted expert goes first)")
      ->check(CLI::IsMember({"misses", "all-uses", "exclusive"}))
      ->capture_default_str()
      ->needs(vram);
  verb.add_option("--expert-bytes", options.expert_bytes,
                  "Of one expert's weights, where the trace does not say")
      ->needs(vram);
}

void add_replay(CLI::App& trace, Action& action) {
  auto options = std::make_shared<TraceOptions>();
  CLI::App* verb = trace.add_subcommand("replay", "Hit rates of cache policies and sizes on a trace");
  verb->add_option("FILE", options->file, "Trace file: of `trace record`, MTRC1, route_trace or event CSV")
      ->required();
  verb->add_option("--policy", options->policies, "lru, lfu-decay, lfru, stoker, belady (default: all)")
      ->delimiter(',');
  add_cache_options(*verb, *options, "1/8, 1/4, 1/2");
  add_tier_options(*verb, *options);
  verb->add_flag("--json", options->json, "Print JSON");
  verb->callback([options, &action] { action = [options](Context& c) { return replay_all(*options, c); }; });
}

void add_record(CLI::App& trace, Action& action) {
  auto options = std::make_shared<TraceOptions>();
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

}  // namespace

void add_trace(CLI::App& app, Action& action) {
  CLI::App* trace =
      app.add_subcommand("trace", "Routing traces: record, describe, replay, score the predictor");
  trace->require_subcommand(1);
  add_record(*trace, action);
  add_replay(*trace, action);
  add_trace_score(*trace, action);
  auto options = std::make_shared<TraceOptions>();
  CLI::App* verb = trace->add_subcommand("report", "Per layer: skew, repetition, look-ahead recall");
  verb->add_option("FILE", options->file, "Trace file")->required();
  auto* json = verb->add_flag("--json", options->json, "Print JSON");
  auto* html = verb->add_option("--html", options->html, "Write a page with charts to this file instead");
  html->excludes(json);
  add_cache_options(*verb, *options, "1/16, 1/8, 3/16, 1/4, 3/8, 1/2", html);
  verb->callback([options, &action] { action = [options](Context& c) { return describe(*options, c); }; });
}

}  // namespace stoker::cli
