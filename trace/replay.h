// Replays a routing trace through a cache of experts: how many uses would have found their expert resident.
//
// Event-atomic: all experts of one layer in one step are looked up together, against what was resident
// before; only then are victims chosen. (One after the other inflates the misses of recency policies by a
// quarter.)
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "trace/trace_file.h"

namespace stoker {

enum class ReplayPolicy : std::uint8_t {
  lru,        ///< least recently used
  lfu_decay,  ///< fewest uses, each worth .98 per step since
  lfru,       ///< uses / (age in steps + 1)
  stoker,     ///< the loader's own (io-worker/residency.h), always over one pool for all layers
  belady,     ///< furthest next use, with bypass: what no policy can beat
};

/// "lru", "lfu-decay", "lfru", "stoker", "belady".
std::optional<ReplayPolicy> parse_policy(std::string_view name);

struct ReplayOptions {
  ReplayPolicy policy = ReplayPolicy::stoker;
  std::uint32_t slots = 0;  ///< of the whole cache; at least one per layer
  /// Every layer has slots / layers of its own (not for stoker). Else one pool for all.
  bool per_layer = false;
  std::size_t skip = 0;  ///< tokens that are replayed but not counted: the cold start
};

struct ReplayResult {
  std::uint64_t hits = 0, misses = 0;
  std::uint64_t compulsory = 0;  ///< misses that are the first use of their expert
  [[nodiscard]] double hit_rate() const {
    return static_cast<double>(hits) / static_cast<double>(hits + misses);
  }
  std::vector<std::uint64_t> misses_per_layer;
};

/// Starts empty. The trace may be of any origin (trace/foreign.h).
ReplayResult replay(const Trace& trace, const ReplayOptions& options);

}  // namespace stoker
