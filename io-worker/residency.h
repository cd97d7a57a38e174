// Residency: which slot to give up. A pure policy (no clock, no I/O), the same code in the loader and in
// trace replay.
//
// Victims come in this order (caching.md 7.1):
//   1. hinted, never used, and older than kHintGraceSteps: a wrong guess;
//   2. lowest LFRU score, decayed frequency / (age + 1)^a with a = 1 + 12 / slots per layer, at most 1.5 (the
//      smaller the pool, the more recency counts: docs/residency.md); prefill accesses do not raise it (scan
//      resistance), so a scan recycles its own slots. Age counts how often the layer has come by since: a
//      layer that the step in progress has not reached yet is one younger, or those just ahead of it would go
//      first;
//   3. a layer never falls below its floor of resident experts while another layer is above its own.
// Leased slots are never offered by the caller. Fresh hints are protected unless nothing else is left.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "shm/base/types.h"
#include "shm/slot_word.h"

namespace stoker {

/// What the policy may know about one unleased, ready slot.
struct ResidentSlot {
  SlotId slot;
  ExpertKey expert;
  SlotOrigin origin = SlotOrigin::demand;
  std::uint64_t usage = 0;        ///< ExpertEntry::usage of its expert (shm/usage.h)
  std::uint32_t filled_step = 0;  ///< step counter when it was filled
};

class Residency {
 public:
  static constexpr std::uint32_t kHintGraceSteps = 4;
  static constexpr std::uint32_t kFloorPerLayer = 20;

  Residency(std::uint32_t layers, std::uint32_t experts_per_layer, std::uint32_t slot_count);

  /// Appends up to `count` victims to `out`, best first. `resident_per_layer` has one entry per layer and
  /// counts ready slots; it is not changed. `step` is the step in progress and `layer` where it has got to.
  /// No allocation once warm.
  void choose(std::span<ResidentSlot> slots, std::span<const std::uint32_t> resident_per_layer,
              std::uint32_t step, std::uint32_t layer, std::size_t count, std::vector<SlotId>& out);

  /// How many victims to take from one scan of the pool: a scan costs a pass over all slots, but victims that
  /// wait go stale (a 32nd of the pool at once costs 0.3 points of hit rate at 24 slots per layer).
  static constexpr std::size_t scan_batch(std::size_t slot_count) {
    return std::clamp<std::size_t>(slot_count / 128, 1, 64);
  }

  /// Higher is kept longer; 0 = never used.
  [[nodiscard]] float score(std::uint64_t usage, std::uint32_t step) const;

  [[nodiscard]] std::uint32_t floor_per_layer() const { return floor_; }

 private:
  struct Ranked {
    float rank = 0;  ///< lower goes first
    std::uint32_t index = 0;
  };
  static constexpr std::uint32_t kAges = 4096;  ///< older counts as this old
  std::uint32_t experts_per_layer_;
  std::uint32_t floor_;
  std::vector<float> by_age_;  ///< what a use is worth, by age in steps
  std::vector<Ranked> ranked_;
  std::vector<std::uint32_t> left_;  ///< residents per layer as victims are taken
};

}  // namespace stoker
