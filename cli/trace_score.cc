// `stoker trace score`: what the predictor would have made of a routing trace (trace/score.h).
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/context.h"
#include "cli/statistics.h"
#include "trace/foreign.h"
#include "trace/score.h"

namespace stoker::cli {
namespace {

struct TraceScoreOptions {
  std::string file;
  std::vector<std::uint32_t> slots_per_layer;
  std::vector<std::string> sources;
  std::uint32_t horizon = PredictorOptions{}.horizon;
  std::size_t skip = 0;
  bool json = false;
};

double share(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string percent(double value) { return number_text("%.1f", 100 * value); }

bool has(const std::vector<std::string>& names, const char* name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// What the daemon would use: the token table too, if the trace knows its tokens.
PredictorOptions predictor_of(const TraceScoreOptions& options, const Trace& trace) {
  PredictorOptions predictor;
  predictor.horizon = options.horizon;
  if (!options.sources.empty()) {
    predictor.lookahead = has(options.sources, "look-ahead");
    predictor.token_table = has(options.sources, "token");
    predictor.cross_layer = has(options.sources, "cross-layer");
  } else if (trace.shape.candidates == 0) {
    predictor.cross_layer = true;  // nothing better is there
  }
  // Traces of other projects have no token ids: one token for all would be a table of popularity.
  if (!trace.tiers_known) predictor.token_table = false;
  return predictor;
}

nlohmann::ordered_json to_json(const GuessScore& s) {
  nlohmann::ordered_json out{{"precision", share(s.right, s.sent)}, {"cold", s.cold}};
  for (std::size_t i = 0; i < s.cold_found.size(); ++i)
    out["cold_recall_" + std::to_string(GuessScore::kRecallAt[i])] = share(s.cold_found[i], s.cold);
  return out;
}

std::string recall_cells(const GuessScore& s) {
  std::string text;
  for (std::size_t i = 0; i < s.cold_found.size(); ++i)
    text += (i == 0 ? "" : " / ") + percent(share(s.cold_found[i], s.cold));
  return text;
}

struct Pair {
  ScoreResult on, off;
};

std::string row(std::uint32_t size, const Pair& r) {
  const auto per_step = [](std::uint64_t n, const ScoreResult& s) {
    return number_text("%.1f",
                       static_cast<double>(n) / static_cast<double>(std::max<std::uint64_t>(1, s.steps)));
  };
  return "| " + std::to_string(size) + " | " + percent(1 - share(r.off.demand_reads, r.off.uses)) + " | " +
         percent(1 - share(r.on.demand_reads, r.on.uses)) + " | " + per_step(r.off.reads(), r.off) + " | " +
         per_step(r.on.reads(), r.on) + " | " + recall_cells(r.off.near) + " | " + recall_cells(r.off.far) +
         " | " + recall_cells(r.off.first) + " | " + percent(share(r.on.near.right, r.on.near.sent)) + " | " +
         percent(share(r.on.used, r.on.issued)) + " | " + number_text("%.2f", share(r.on.wasted, r.on.used)) +
         " | " + percent(share(r.on.steps_retreated, r.on.steps)) + " |\n";
}

nlohmann::ordered_json row_json(std::uint32_t slots, const Pair& r) {
  return {{"slots", slots},
          {"steps", r.on.steps},
          {"uses", r.on.uses},
          {"demand_reads", r.on.demand_reads},
          {"demand_reads_without", r.off.demand_reads},
          {"hint_reads", r.on.issued},
          {"hint_reads_used", r.on.used},
          {"hint_reads_wasted", r.on.wasted},
          {"steps_retreated", r.on.steps_retreated},
          {"near", to_json(r.off.near)},
          {"far", to_json(r.off.far)},
          {"layer_0", to_json(r.off.first)}};
}

int score_all(const TraceScoreOptions& options, Context& context) {
  auto trace = read_any_trace(options.file);
  if (!trace) return report(trace.error(), "trace");
  if (options.skip >= trace->tokens.size())
    return report(kUsage, "--skip", "the trace has only " + std::to_string(trace->tokens.size()) + " tokens");
  std::vector<std::uint32_t> sizes = options.slots_per_layer;
  if (sizes.empty())
    for (const std::uint32_t part : {8U, 4U, 2U}) sizes.push_back(std::max(1U, trace->shape.experts / part));
  nlohmann::ordered_json json{
      {"file", options.file}, {"tokens", trace->tokens.size()}, {"pools", nlohmann::json::array()}};
  std::string table =
      "| slots per layer | hit rate without hints, % | with | reads per step without | with | recall on "
      "non-resident experts at 10 / 16 / 24, next layer, % | layers ahead | layer 0 | precision, % | hinted "
      "reads used, % | wasted bytes per useful byte | steps retreated, % |\n"
      "|---|---|---|---|---|---|---|---|---|---|---|---|\n";
  for (const std::uint32_t size : sizes) {
    context.terminal.progress(std::to_string(size) + " slots per layer");
    ScoreOptions how{.slots = size * trace->shape.layers,
                     .skip = options.skip,
                     .hints = true,
                     .predictor = predictor_of(options, *trace)};
    Pair result;
    result.on = score(*trace, how);
    how.hints = false;
    result.off = score(*trace, how);
    table += row(size, result);
    json["pools"].push_back(row_json(how.slots, result));
  }
  context.terminal.clear_progress();
  return context.terminal.write_answer(options.json ? json.dump() + "\n" : table)
             ? kOk
             : report(kFailure, "stdout", "the result could not be written");
}

}  // namespace

void add_trace_score(CLI::App& trace, Action& action) {
  auto options = std::make_shared<TraceScoreOptions>();
  CLI::App* verb =
      trace.add_subcommand("score", "What prefetching would have guessed, hit and wasted on a trace");
  verb->add_option("FILE", options->file, "Trace file: of `trace record`, MTRC1, route_trace or event CSV")
      ->required();
  verb->add_option("--slots-per-layer", options->slots_per_layer,
                   "Pool sizes, N[,N...] (default: 1/8, 1/4, 1/2)")
      ->delimiter(',')
      ->check(CLI::Range(1U, 65535U));
  verb->add_option("--sources", options->sources,
                   "look-ahead, token, cross-layer (default: what the predictor uses)")
      ->delimiter(',')
      ->check(CLI::IsMember({"look-ahead", "token", "cross-layer"}));
  verb->add_option("--horizon", options->horizon, "How many layers ahead tables look")
      ->check(CLI::Range(1U, 64U))
      ->capture_default_str();
  verb->add_option("--skip", options->skip, "Tokens at the start that are played but not counted");
  verb->add_flag("--json", options->json, "Print JSON");
  verb->callback([options, &action] { action = [options](Context& c) { return score_all(*options, c); }; });
}

}  // namespace stoker::cli
