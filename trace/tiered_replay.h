// Replays a routing trace through device memory in front of the pool: the worker's own VramCache
// (gpu-worker/cuda/vram_cache.h) before the loader's own residency policy (trace/pool_model.h).
//
// Event-atomic, in the worker's order: all experts of an event are looked up in device memory, what is not
// there in the pool, what is not there either is read. Then the worker's own LaneSplit decides what the CPU
// computes and what is copied, and copies may stay in device memory. Reads and copies take no time: a copy is
// complete when the next event begins.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>

#include "gpu-worker/cuda/lanes.h"
#include "gpu-worker/cuda/vram_cache.h"
#include "trace/trace_file.h"

namespace stoker {

/// What the pool's policy learns of uses that device memory served.
enum class PoolHears : std::uint8_t {
  misses,     ///< nothing: what is hot in device memory ages in the pool, and its copy there goes first
  all_uses,   ///< every use
  exclusive,  ///< nothing, and a promoted expert counts as never used from then on
};

/// As many as LaneSplit wants are copied. Which ones?
enum class CopyChoice : std::uint8_t {
  in_order,  ///< as LaneSplit meets them: those in the pool first, by id
  hottest,   ///< those whose last use before this one is most recent (VramCache::last_gap)
};

struct TieredReplayOptions {
  std::uint32_t vram_slots = 0;  ///< of the whole model
  /// Of the whole model. Room for every expert: it begins full, as if preloaded.
  std::uint32_t pool_slots = 0;
  std::size_t skip = 0;  ///< tokens that are replayed but not counted: the cold start
  VramCacheOptions vram{};
  double cpu_rate = 0, copy_rate = 0;  ///< of the lanes, in the same unit; cpu_rate 0: everything is copied
  CopyChoice copies = CopyChoice::in_order;
  PoolHears pool_hears = PoolHears::misses;
};

/// Where the distinct experts of one event were.
struct EventTiers {
  std::uint32_t vram = 0, pool = 0, disk = 0;
  std::uint32_t copied = 0;    ///< of pool and disk: over PCIe; the CPU computes the others
  std::uint32_t promoted = 0;  ///< of copied: into a slot, where they stay
  auto operator<=>(const EventTiers&) const = default;
};

struct TieredReplayResult {
  std::uint64_t tokens = 0, steps = 0;         ///< counted ones
  std::uint64_t vram = 0, pool = 0, disk = 0;  ///< uses by tier
  std::uint64_t copied = 0, promoted = 0;
  std::uint64_t compulsory = 0;                ///< of disk: the first use of the expert in the trace
  std::map<EventTiers, std::uint64_t> events;  ///< how many events were like this
  [[nodiscard]] std::uint64_t uses() const { return vram + pool + disk; }
};

TieredReplayResult tiered_replay(const Trace& trace, const TieredReplayOptions& options);

}  // namespace stoker
