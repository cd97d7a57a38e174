// `stoker trace replay --vram-slots`: device memory in front of the pool (trace/tiered_replay.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/context.h"
#include "trace/tiered_replay.h"

namespace stoker::cli {

struct TierReplay {
  std::string file;
  std::vector<std::uint32_t> vram_slots;       ///< of the whole model; each is replayed with each pool
  std::vector<std::uint32_t> slots_per_layer;  ///< of the pool
  std::uint64_t expert_bytes = 0;              ///< 0: not known
  TieredReplayOptions how;                     ///< its slots are not read
  bool json = false;
};

/// The exit code.
int replay_tiers(const Trace& trace, const TierReplay& options, Context& context);

}  // namespace stoker::cli
