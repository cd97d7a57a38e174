// `stoker trace report`: one row per layer, or a page with charts.
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/trace_input.h"
#include "trace/html_report.h"
#include "trace/statistics.h"

namespace stoker::cli {
namespace {

struct ReportOptions {
  TraceInput input;
  std::string html;
  bool json = false;
};

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

/// Pool sizes for a curve: from a sixteenth to half of the experts.
std::vector<std::uint32_t> curve_sizes(const TraceInput& input, const TraceShape& shape) {
  std::vector<std::uint32_t> sizes = input.slots_per_layer;
  if (sizes.empty())
    for (const std::uint32_t sixteenths : {1U, 2U, 3U, 4U, 6U, 8U})
      sizes.push_back(std::max(1U, shape.experts * sixteenths / 16));
  std::sort(sizes.begin(), sizes.end());
  sizes.erase(std::unique(sizes.begin(), sizes.end()), sizes.end());
  return sizes;
}

int write_html(const ReportOptions& options, const Trace& trace, Context& context) {
  if (const auto ok = check_skip(options.input, trace); !ok) return report(ok.error());
  const std::string page =
      html_report(trace, {.title = "Routing trace " + options.input.file,
                          .slots_per_layer = curve_sizes(options.input, trace.shape),
                          .per_layer = options.input.per_layer,
                          .skip = options.input.skip,
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

int describe(const ReportOptions& options, Context& context) {
  const auto trace = load_trace(options.input.file, context);
  if (!trace) return report(trace.error());
  if (!options.html.empty()) return write_html(options, *trace, context);
  const auto layers = layer_statistics(*trace);
  const std::string out = options.json ? as_json(*trace, layers).dump() + "\n" : as_markdown(*trace, layers);
  return context.terminal.write_answer(out) ? kOk
                                            : report(kFailure, "stdout", "the report could not be written");
}

}  // namespace

void add_trace_report(CLI::App& trace, Action& action) {
  auto options = std::make_shared<ReportOptions>();
  CLI::App* verb = trace.add_subcommand("report", "Per layer: skew, repetition, look-ahead recall");
  verb->add_option("FILE", options->input.file, "Trace file")->required();
  auto* json = verb->add_flag("--json", options->json, "Print JSON");
  auto* html = verb->add_option("--html", options->html, "Write a page with charts to this file instead");
  html->excludes(json);
  add_cache_options(*verb, options->input, "1/16, 1/8, 3/16, 1/4, 3/8, 1/2", html);
  verb->callback([options, &action] { action = [options](Context& c) { return describe(*options, c); }; });
}

}  // namespace stoker::cli
