#include "trace/html_report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "trace/html_charts.h"
#include "trace/replay.h"
#include "trace/statistics.h"

namespace stoker {
namespace {

using html::escape;
using html::number;

constexpr std::array<std::pair<const char*, ReplayPolicy>, 5> kPolicies = {
    {{"lru", ReplayPolicy::lru},
     {"lfu-decay", ReplayPolicy::lfu_decay},
     {"lfru", ReplayPolicy::lfru},
     {"stoker", ReplayPolicy::stoker},
     {"belady", ReplayPolicy::belady}}};
constexpr std::size_t kHeatCellsMax = 1U << 18;

std::string section(const std::string& title, const std::string& content) {
  return "<h2>" + escape(title) + "</h2>\n" + content;
}
std::string note(const std::string& text) { return "<p class=\"note\">" + escape(text) + "</p>\n"; }

std::string summary(const Trace& trace, std::size_t skip) {
  const TraceShape& s = trace.shape;
  std::string text = std::to_string(trace.tokens.size()) + " tokens, " + std::to_string(s.layers) +
                     " layers, top " + std::to_string(s.top_k) + " of " + std::to_string(s.experts) +
                     " experts";
  if (const TierUses uses = tier_uses(trace); uses.all() > 0) {
    const double all = static_cast<double>(uses.all());
    text +=
        number("; while recording: pool %.1f %%", 100 * static_cast<double>(uses.pool + uses.hinted) / all) +
        number(" (prefetched %.1f %%)", 100 * static_cast<double>(uses.hinted) / all) +
        number(", disk %.1f %%", 100 * static_cast<double>(uses.disk) / all);
  }
  if (skip > 0) text += ". The first " + std::to_string(skip) + " tokens are not counted below";
  return note(text + ".");
}

/// Results by policy (as in kPolicies), then by size.
using Replays = std::vector<std::vector<ReplayResult>>;

Replays replay_sizes(const Trace& trace, const HtmlReportOptions& options) {
  Replays all;
  for (const auto& [name, policy] : kPolicies) {
    all.emplace_back();
    for (const std::uint32_t size : options.slots_per_layer) {
      if (options.progress)
        options.progress(std::string(name) + ", " + std::to_string(size) + " slots per layer");
      all.back().push_back(replay(trace, {.policy = policy,
                                          .slots = size * trace.shape.layers,
                                          .per_layer = options.per_layer,
                                          .skip = options.skip}));
    }
  }
  return all;
}

/// The figures behind the lines; a cell carries the counts that `trace replay --json` gives.
std::string replay_table(const Replays& replays, const HtmlReportOptions& options) {
  std::string out = "<table id=\"hit-rates\"><tr><th>hit rate, % at slots per layer</th>";
  for (const std::uint32_t size : options.slots_per_layer) out += "<th>" + std::to_string(size) + "</th>";
  out += "</tr>\n";
  const std::vector<ReplayResult>& best = replays.back();
  for (std::size_t p = 0; p < replays.size(); ++p) {
    out += "<tr><th>" + std::string(kPolicies[p].first) + "</th>";
    for (std::size_t i = 0; i < replays[p].size(); ++i) {
      const ReplayResult& r = replays[p][i];
      out += "<td data-hits=\"" + std::to_string(r.hits) + "\" data-misses=\"" + std::to_string(r.misses) +
             "\">" + number("%.1f", 100 * r.hit_rate());
      if (p + 1 < replays.size())
        out +=
            number(" <span class=\"dim\">\xE2\x88\x92%.1f</span>", 100 * (best[i].hit_rate() - r.hit_rate()));
      out += "</td>";
    }
    out += "</tr>\n";
  }
  return out + "</table>\n" +
         note(
             "Behind each figure: points below Belady, which knows the future and may bypass. stoker is the "
             "loader's own policy, over one pool for all layers.");
}

std::string hit_rates(const Trace& trace, const HtmlReportOptions& options) {
  const Replays replays = replay_sizes(trace, options);
  const std::vector<double> sizes(options.slots_per_layer.begin(), options.slots_per_layer.end());
  std::vector<html::Series> series;
  for (std::size_t p = 0; p < replays.size(); ++p) {
    series.push_back({kPolicies[p].first, {}});
    for (const ReplayResult& r : replays[p]) series.back().y.push_back(100 * r.hit_rate());
  }
  return section("Hit rate over pool size",
                 html::line_chart(sizes, series, "slots per layer") + replay_table(replays, options));
}

std::string heat(const Trace& trace, std::size_t skip) {
  const TraceShape& s = trace.shape;
  const std::string title = "Uses of experts";
  if (std::size_t{s.layers} * s.experts > kHeatCellsMax)
    return section(title, note("Too many experts to draw: " + std::to_string(s.layers) + " layers of " +
                               std::to_string(s.experts) + "."));
  std::vector<double> uses(std::size_t{s.layers} * s.experts);
  for (std::size_t t = skip; t < trace.tokens.size(); ++t)
    for (std::size_t i = 0; i < trace.tokens[t].chosen.size(); ++i)
      if (const std::uint16_t expert = trace.tokens[t].chosen[i]; expert != kNoExpert)
        ++uses[i / s.top_k * s.experts + expert];
  return section(title,
                 html::heat_map(s.layers, s.experts, uses, "layer", "expert") +
                     note("Darker (in dark mode lighter): used more often, in steps of a factor of 1.6; "
                          "empty: never. The mean over all experts is the fifth of nine steps."));
}

bool timed(const TraceToken& token) { return !token.times.empty() && token.times.back().done > 0; }

/// Tokens of one step were computed together: its times count once.
std::vector<const TraceToken*> timed_steps(const Trace& trace, std::size_t skip) {
  std::vector<const TraceToken*> steps;
  for (std::size_t t = skip; t < trace.tokens.size(); ++t)
    if (const TraceToken& token = trace.tokens[t];
        timed(token) && (steps.empty() || steps.back()->step != token.step))
      steps.push_back(&token);
  return steps;
}

std::uint32_t from_disk(const Trace& trace, const TraceToken& token, std::size_t layer) {
  const std::size_t k = trace.shape.top_k;
  const auto first = token.tiers.begin() + static_cast<std::ptrdiff_t>(layer * k);
  return static_cast<std::uint32_t>(std::count_if(first, first + static_cast<std::ptrdiff_t>(k),
                                                  [](std::uint8_t tier) { return tier > 2; }));
}

std::string stalls(const Trace& trace, const std::vector<const TraceToken*>& steps) {
  const std::string title = "Stall per layer";
  if (steps.empty()) return section(title, note("The trace has no timings."));
  const std::size_t layers = trace.shape.layers;
  const auto count = static_cast<double>(steps.size());
  std::vector<double> mean(layers), misses(layers);
  double stalled = 0, total = 0;
  for (const TraceToken* token : steps) {
    total += token->times.back().done;
    for (std::size_t l = 0; l < layers; ++l) {
      mean[l] += token->times[l].stalled / 1000 / count;
      misses[l] += from_disk(trace, *token, l) / count;
      stalled += token->times[l].stalled;
    }
  }
  std::vector<std::string> titles;
  for (std::size_t l = 0; l < layers; ++l)
    titles.push_back("layer " + std::to_string(l) + number(": %.3f ms per step", mean[l]) +
                     number(", %.2f experts from disk", misses[l]));
  return section(title, html::bar_chart(mean, titles, "layer", "ms per step") +
                            note(std::to_string(steps.size()) + " steps; the layers of a mean step take " +
                                 number("%.2f ms", total / 1000 / count) +
                                 number(", of which %.2f ms wait for weights", stalled / 1000 / count) +
                                 number(" (%.1f %%).", total > 0 ? 100 * stalled / total : 0)));
}

std::string slow_token(const Trace& trace, const TraceToken* token) {
  if (token == nullptr) return "";
  std::vector<html::WaterfallRow> rows;
  double before = 0, stalled = 0;
  std::uint32_t misses = 0;
  for (std::size_t l = 0; l < token->times.size(); ++l) {
    const LayerTimes& t = token->times[l];
    const std::uint32_t here = from_disk(trace, *token, l);
    rows.push_back({.began = before,
                    .demanded = t.demanded / 1000.0,
                    .landed = t.landed / 1000.0,
                    .done = t.done / 1000.0,
                    .stalled = t.stalled / 1000.0,
                    .title = "layer " + std::to_string(l) + ": " + std::to_string(here) + " from disk" +
                             number(", stall %.3f ms", t.stalled / 1000.0) +
                             number(", layer %.3f ms", t.done / 1000.0 - before)});
    before = t.done / 1000.0;
    stalled += t.stalled / 1000.0;
    misses += here;
  }
  const std::string legend =
      "<p><span class=\"key\" style=\"background: var(--mixer)\"></span>mixer and router, up to the demand"
      "<span class=\"key\" style=\"background: var(--work)\"></span>experts computed"
      "<span class=\"key\" style=\"background: var(--stall)\"></span>stall, up to the last landing</p>\n";
  return section(
      "The slowest step",
      html::waterfall(rows) + legend +
          note("Step " + std::to_string(token->step) + " (token id " + std::to_string(token->token) +
               number("): %.2f ms", before) + number(", of which %.2f ms stall; ", stalled) +
               std::to_string(misses) + " experts from disk. A layer's waits are drawn as one piece."));
}

}  // namespace

const TraceToken* slowest_token(const Trace& trace, std::size_t skip) {
  const auto steps = timed_steps(trace, skip);
  const auto slowest = std::max_element(steps.begin(), steps.end(), [](const auto* a, const auto* b) {
    return a->times.back().done < b->times.back().done;
  });
  return slowest == steps.end() ? nullptr : *slowest;
}

std::string html_report(const Trace& trace, const HtmlReportOptions& options) {
  return html::page(options.title, summary(trace, options.skip) + hit_rates(trace, options) +
                                       heat(trace, options.skip) +
                                       stalls(trace, timed_steps(trace, options.skip)) +
                                       slow_token(trace, slowest_token(trace, options.skip)));
}

}  // namespace stoker
