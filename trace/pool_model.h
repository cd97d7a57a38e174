// The pool as a replay sees it: who is resident, by the loader's own policy (io-worker/residency.h). A read
// takes no time.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "io-worker/residency.h"

namespace stoker {

enum class Found : std::uint8_t { resident, hinted, absent };

class PoolModel {
 public:
  PoolModel(std::uint32_t layers, std::uint32_t experts, std::uint32_t slots);

  /// One layer of one step begins: looks all its experts up against what is resident, then reads what is
  /// absent. `keys` (layer * experts + expert) are distinct; they stay leased until the next call.
  void use(std::uint32_t step, std::uint32_t layer, std::span<const std::uint32_t> keys,
           std::vector<Found>& found);
  /// Reads it for a hint. False: it is resident already, or every slot is leased.
  bool hint(std::uint32_t step, std::uint32_t key);
  /// A use that another tier served: counts for the policy, moves nothing.
  void note_use(std::uint32_t step, std::uint32_t key);
  /// For the policy it is as if it had never been used.
  void forget_uses(std::uint32_t key) { experts_[key].usage = 0; }

  [[nodiscard]] std::uint64_t issued() const { return issued_; }
  [[nodiscard]] std::uint64_t used() const { return used_; }
  [[nodiscard]] std::uint64_t wasted() const { return wasted_; }

 private:
  static constexpr std::uint32_t kAbsent = 0xFFFFFFFF;
  struct Expert {
    std::uint32_t slot = kAbsent;
    std::uint64_t usage = 0;
    std::uint64_t leased_by = 0;  ///< number of the event that uses it
  };
  /// False: nothing can go.
  bool make_room(std::uint32_t step, std::uint32_t layer);
  void scan(std::uint32_t step, std::uint32_t layer);
  void evict(std::uint32_t slot);
  void fill(std::uint32_t step, std::uint32_t key, SlotOrigin origin);

  std::uint32_t experts_per_layer_;
  std::vector<Expert> experts_;  ///< by key
  std::vector<ResidentSlot> slots_;
  std::vector<std::uint32_t> free_;
  std::vector<std::uint32_t> per_layer_;
  Residency residency_;
  std::vector<ResidentSlot> offered_;
  std::vector<SlotId> victims_;
  std::vector<std::uint64_t> usage_at_scan_;  ///< by slot
  std::size_t next_victim_ = 0;
  std::uint64_t event_ = 0, issued_ = 0, used_ = 0, wasted_ = 0;
};

}  // namespace stoker
