#include "shm/lease.h"

#include <atomic>

#include "shm/base/check.h"

namespace stoker {

LeaseTable::LeaseTable(Pool& pool, unsigned process_index)
    : pool_(pool), bit_(static_cast<std::uint16_t>(1U << process_index)), counts_(pool.slot_count(), 0) {
  STOKER_CHECK(process_index < kProcessMax);
}

std::uint32_t LeaseTable::count(SlotId slot) const {
  STOKER_CHECK(slot.value < counts_.size());
  return counts_[slot.value];
}

std::optional<Lease> LeaseTable::try_lease(ExpertKey expert) {
  STOKER_CHECK(expert.value < pool_.expert_count());
  const SlotId id{pool_.experts()[expert.value].slot.load(std::memory_order_acquire)};
  if (id.value >= counts_.size()) return std::nullopt;  // kNone, or nonsense
  SlotControl& slot = pool_.slots()[id.value];
  if (counts_[id.value] != 0) {
    // Our bit keeps the content in place, also while the slot is retiring.
    if (slot.expert.load(std::memory_order_relaxed) != expert.value) return std::nullopt;
    ++counts_[id.value];
    return Lease{.slot = id};
  }
  const auto leased = update(slot, [&](SlotWord word) -> std::optional<SlotWord> {
    // The key is read between loading the word and the compare-and-swap: if the word did not change, the
    // slot was ready all the while, and the key belongs to this generation.
    if (word.state != SlotState::ready || slot.expert.load(std::memory_order_relaxed) != expert.value)
      return std::nullopt;
    word.readers = static_cast<std::uint16_t>(word.readers | bit_);
    return word;
  });
  if (!leased) return std::nullopt;
  counts_[id.value] = 1;
  ++held_;
  constexpr auto kHint = static_cast<std::uint32_t>(SlotOrigin::hint_unused);
  constexpr auto kDemand = static_cast<std::uint32_t>(SlotOrigin::demand);
  const bool hint_hit = slot.origin.load(std::memory_order_relaxed) == kHint &&
                        slot.origin.exchange(kDemand, std::memory_order_relaxed) == kHint;
  return Lease{.slot = id, .hint_hit = hint_hit};
}

bool LeaseTable::adopt(SlotId slot) {
  if (slot.value >= counts_.size()) return false;
  const SlotWord word = unpack(pool_.slots()[slot.value].word.load(std::memory_order_acquire));
  if ((word.readers & bit_) == 0 || (word.state != SlotState::ready && word.state != SlotState::retiring))
    return false;
  if (counts_[slot.value]++ == 0) ++held_;
  return true;
}

bool LeaseTable::release(SlotId slot) {
  STOKER_CHECK(slot.value < counts_.size() && counts_[slot.value] != 0);
  if (--counts_[slot.value] != 0) return false;
  --held_;
  const auto word = update(pool_.slots()[slot.value], [&](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::ready && w.state != SlotState::retiring)
      return std::nullopt;  // not ours any more
    w.readers = static_cast<std::uint16_t>(w.readers & ~bit_);
    return w;
  });
  return word && word->state == SlotState::retiring && word->readers == 0;
}

}  // namespace stoker
