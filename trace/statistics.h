// What a routing trace says about each layer's router: is it alive, how skewed, how repetitive, how
// predictable. Definitions as in the project's survey of 512-expert models, so that the figures compare.
#pragma once

#include <cstdint>
#include <vector>

#include "trace/trace_file.h"

namespace stoker {

struct LayerStatistics {
  std::uint64_t tokens = 0;
  double entropy_bits = 0;         ///< of the shares of uses; log2(experts) if all are used alike
  std::uint32_t experts_used = 0;  ///< at least once
  double top10 = 0, top25 = 0,
         top50 = 0;  ///< share of uses that go to the busiest 10, 25, 50 % of the experts
  /// Of a token's experts, how many the same sequence's token before it had chosen (mean share).
  double overlap = 0;
  /// Of a token's experts, how many were among the first top_k (2 top_k; all) look-ahead candidates: the next
  /// layer's router applied to this layer's input. NaN where there were none (layer 0).
  double recall_k = 0, recall_2k = 0, recall_all = 0;
};

/// Where the experts were when they were needed: uses by tier. Zero where the trace does not say.
struct TierUses {
  std::uint64_t pool = 0, hinted = 0,
                disk = 0;  ///< hinted: in the pool because of a hint; disk: late hints included
  [[nodiscard]] std::uint64_t all() const { return pool + hinted + disk; }
};
TierUses tier_uses(const Trace& trace);

/// One entry per layer.
std::vector<LayerStatistics> layer_statistics(const Trace& trace);
/// Mean over the layers that have a figure.
LayerStatistics mean_of(const std::vector<LayerStatistics>& layers);

}  // namespace stoker
