// A worker's leases: which slots this process holds, counted privately per slot.
//
// Life of a lease:
//   1. try_lease() sets the process's reader bit in the slot word (the first time) and counts 1; or the
//      loader has set the bit when it granted a demand, and adopt() counts 1.
//   2. Further leases of the same slot only count.
//   3. release() counts down; the last one clears the bit.
// The bit is touched on 0 <-> 1 only, so a hit on a slot already held costs no shared write.
//
// While a demand of this process for an expert is pending, do not try_lease() that expert: the loader sets
// the same bit when it grants, and a release in between would clear it. Poll the demand instead.
//
// Not thread-safe: one table per process, used from one thread (or under the caller's lock).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "shm/base/types.h"
#include "shm/pool.h"

namespace stoker {

struct Lease {
  SlotId slot;
  bool hint_hit = false;  ///< the content came by a hint and this was its first use (now counted)
};

class LeaseTable {
 public:
  /// `process_index`: assigned by the loader at attach. `pool` must outlive the table.
  LeaseTable(Pool& pool, unsigned process_index);

  /// Leases the slot that holds `expert`; nothing when it is not in the pool (or on its way out). No
  /// allocation, no system call.
  [[nodiscard]] std::optional<Lease> try_lease(ExpertKey expert);

  /// Counts a lease whose bit the loader set when it granted a demand. False when `slot` is out of range or
  /// the bit is not there: the loader (or shared memory) contradicts itself, treat as a failed demand.
  [[nodiscard]] bool adopt(SlotId slot);

  /// Ends one lease. True when this was the last reader of a retiring slot: the loader may be waiting for
  /// it, so ring the doorbell. The process must hold `slot`.
  bool release(SlotId slot);

  /// Slots held now (not leases: a slot leased twice counts once).
  [[nodiscard]] std::uint32_t held() const { return held_; }
  [[nodiscard]] std::uint32_t count(SlotId slot) const;

 private:
  Pool& pool_;
  std::uint16_t bit_;
  std::uint32_t held_ = 0;
  std::vector<std::uint32_t> counts_;  ///< by slot; private memory
};

}  // namespace stoker
