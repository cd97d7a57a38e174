#include "trace/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <span>

namespace stoker {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

using Experts = std::span<const std::uint16_t>;

Experts row(const std::vector<std::uint16_t>& values, std::uint32_t layer, std::uint32_t width) {
  return Experts(values).subspan(std::size_t{layer} * width, width);
}

/// Share of `wanted` that is in `offered`.
double share(Experts wanted, Experts offered) {
  const auto found = std::count_if(wanted.begin(), wanted.end(), [&](std::uint16_t expert) {
    return std::find(offered.begin(), offered.end(), expert) != offered.end();
  });
  return static_cast<double>(found) / static_cast<double>(wanted.size());
}

struct Mean {
  double sum = 0;
  std::uint64_t count = 0;
  void add(double value) {
    if (std::isnan(value)) return;
    sum += value;
    ++count;
  }
  [[nodiscard]] double value() const { return count == 0 ? kNone : sum / static_cast<double>(count); }
};

void describe_uses(std::vector<std::uint64_t> uses, LayerStatistics& out) {
  std::sort(uses.begin(), uses.end(), std::greater<>());
  const auto total = static_cast<double>(std::accumulate(uses.begin(), uses.end(), std::uint64_t{0}));
  if (total == 0) return;
  for (const std::uint64_t n : uses) {
    if (n == 0) break;
    ++out.experts_used;
    const double p = static_cast<double>(n) / total;
    out.entropy_bits -= p * std::log2(p);
  }
  const auto top = [&](double part) {
    const auto n = static_cast<std::ptrdiff_t>(std::ceil(part * static_cast<double>(uses.size())));
    return static_cast<double>(std::accumulate(uses.begin(), uses.begin() + n, std::uint64_t{0})) / total;
  };
  out.top10 = top(0.10);
  out.top25 = top(0.25);
  out.top50 = top(0.50);
}

LayerStatistics one_layer(const Trace& trace, std::uint32_t layer) {
  const TraceShape& shape = trace.shape;
  LayerStatistics out;
  std::vector<std::uint64_t> uses(shape.experts);
  std::map<std::uint32_t, const TraceToken*> before;  // by sequence
  Mean overlap, recall_k, recall_2k, recall_all;
  for (const TraceToken& token : trace.tokens) {
    const Experts chosen = row(token.chosen, layer, shape.top_k);
    for (const std::uint16_t expert : chosen)
      if (expert != kNoExpert) ++uses[expert];
    ++out.tokens;
    const TraceToken*& last = before[token.sequence];
    if (last != nullptr) overlap.add(share(chosen, row(last->chosen, layer, shape.top_k)));
    last = &token;
    Experts offered = row(token.candidates, layer, shape.candidates);
    const auto end = std::find(offered.begin(), offered.end(), kNoExpert);
    offered = offered.first(static_cast<std::size_t>(end - offered.begin()));
    if (offered.empty()) continue;
    const auto recall = [&](std::size_t n) {
      return offered.size() < n ? kNone : share(chosen, offered.first(n));
    };
    recall_k.add(recall(shape.top_k));
    recall_2k.add(recall(std::size_t{shape.top_k} * 2));
    recall_all.add(recall(offered.size()));
  }
  describe_uses(std::move(uses), out);
  out.overlap = overlap.value();
  out.recall_k = recall_k.value();
  out.recall_2k = recall_2k.value();
  out.recall_all = recall_all.value();
  return out;
}

}  // namespace

TierUses tier_uses(const Trace& trace) {
  TierUses uses;
  if (!trace.tiers_known) return uses;
  for (const TraceToken& token : trace.tokens)
    for (const std::uint8_t tier : token.tiers)
      ++(tier < 2 ? uses.pool : tier == 2 ? uses.hinted : uses.disk);
  return uses;
}

std::vector<LayerStatistics> layer_statistics(const Trace& trace) {
  std::vector<LayerStatistics> layers;
  for (std::uint32_t layer = 0; layer < trace.shape.layers; ++layer)
    layers.push_back(one_layer(trace, layer));
  return layers;
}

LayerStatistics mean_of(const std::vector<LayerStatistics>& layers) {
  LayerStatistics mean;
  const auto of = [&](double LayerStatistics::*field) {
    Mean values;
    for (const LayerStatistics& layer : layers) values.add(layer.*field);
    return values.value();
  };
  for (double LayerStatistics::*field :
       {&LayerStatistics::entropy_bits, &LayerStatistics::top10, &LayerStatistics::top25,
        &LayerStatistics::top50, &LayerStatistics::overlap, &LayerStatistics::recall_k,
        &LayerStatistics::recall_2k, &LayerStatistics::recall_all}) {
    mean.*field = of(field);
  }
  for (const LayerStatistics& layer : layers) {
    mean.tokens = layer.tokens;
    mean.experts_used += layer.experts_used;
  }
  if (!layers.empty()) mean.experts_used /= static_cast<std::uint32_t>(layers.size());
  return mean;
}

}  // namespace stoker
