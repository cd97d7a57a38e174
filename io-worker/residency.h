// Residency: which slot to give up. A pure policy (no clock, no I/O), the same code in the loader and in
// trace replay.
//
// Victims come in this order (caching.md 7.1):
//   1. hinted, never used, and older than kHintGraceSteps: a wrong guess;
//   2. lowest LFRU score (decayed frequency / age); prefill accesses do not raise it (scan resistance),
//      so a scan recycles its own slots;
//   3. a layer never falls below its floor of resident experts while another layer is above its own.
// Leased slots are never offered by the caller. Fresh hints are protected unless nothing else is left.
#pragma once

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
  /// counts ready slots; it is not changed. `slots` is reordered. No allocation once warm.
  void choose(std::span<ResidentSlot> slots, std::span<const std::uint32_t> resident_per_layer,
              std::uint32_t step, std::size_t count, std::vector<SlotId>& out);

  [[nodiscard]] std::uint32_t floor_per_layer() const { return floor_; }

 private:
  struct Ranked {
    float rank = 0;  ///< lower goes first
    std::uint32_t index = 0;
  };
  std::uint32_t experts_per_layer_;
  std::uint32_t floor_;
  std::vector<Ranked> ranked_;
  std::vector<std::uint32_t> left_;  ///< residents per layer as victims are taken
};

}  // namespace stoker
