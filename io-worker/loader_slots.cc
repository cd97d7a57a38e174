// The loader's slots: what a predecessor left, who has to go for a new expert, and how.
#include "io-worker/loader.h"
#include "shm/base/counter.h"

namespace stoker {

/// Makes private state agree with what a predecessor left, and directory entries agree with slot words.
void Loader::adopt_slots() {
  for (ExpertEntry& e : pool_.experts()) e.slot.store(kNone, std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < pool_.slot_count(); ++i) adopt_slot(i);
  pool_.counters().loader.quarantined.store(quarantined_, std::memory_order_relaxed);
}

void Loader::adopt_slot(std::uint32_t index) {
  SlotControl& slot = pool_.slots()[index];
  // A predecessor's read may still be landing: never reuse before recovery says so.
  (void)update(slot, [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::filling) return std::nullopt;
    return SlotWord{SlotState::quarantined, w.epoch, 0, w.generation};
  });
  const SlotWord word = unpack(slot.word.load(std::memory_order_acquire));
  if (word.state == SlotState::quarantined) ++quarantined_;
  if (word.state == SlotState::free) free_slots_.push_back(index);
  if (word.state == SlotState::ready) {
    const ExpertKey key{slot.expert.load(std::memory_order_relaxed)};
    ExpertEntry* entry = key.value < plan_.expert_count() ? &pool_.experts()[key.value] : nullptr;
    if (entry != nullptr && entry->slot.load(std::memory_order_relaxed) == kNone) {
      entry->slot.store(index, std::memory_order_release);
      ++resident_per_layer_[key.value / plan_.experts_per_layer()];
      return;
    }
    // An impossible key, or a second copy: give it back once nobody reads it.
    (void)update(slot, [](SlotWord w) -> std::optional<SlotWord> {
      w.state = SlotState::retiring;
      return w;
    });
  }
  retire_if_unread(index);
}

void Loader::retire_if_unread(std::uint32_t index) {
  const auto freed = update(pool_.slots()[index], [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::retiring || w.readers != 0) return std::nullopt;
    w.state = SlotState::free;
    return w;
  });
  if (freed) free_slots_.push_back(index);
}

std::uint32_t Loader::find_slot(std::uint32_t layer) {
  for (int scan = 0; scan < 2; ++scan) {
    if (!free_slots_.empty()) {
      const std::uint32_t slot = free_slots_.back();
      free_slots_.pop_back();
      return slot;
    }
    while (next_victim_ < victims_.size())
      if (const SlotId victim = victims_[next_victim_++]; evict(victim)) {
        const std::uint32_t slot = free_slots_.back();
        free_slots_.pop_back();
        return slot;
      }
    if (scan == 0) refill_victims(layer);
  }
  return kNone;
}

/// Chooses victims for the next reads now, when nothing waits for it.
void Loader::choose_ahead() {
  if (!free_slots_.empty() || next_victim_ < victims_.size() || !started_since_scan_) return;
  refill_victims(layer_at_scan_);
}

void Loader::refill_victims(std::uint32_t layer) {
  layer_at_scan_ = layer;
  started_since_scan_ = false;
  scratch_slots_.clear();
  auto slots = pool_.slots();
  auto experts = pool_.experts();
  for (std::uint32_t i = 0; i < slots.size(); ++i) {
    const SlotWord word = unpack(slots[i].word.load(std::memory_order_relaxed));
    if (word.state == SlotState::retiring) retire_if_unread(i);
    if (word.state != SlotState::ready || word.readers != 0) continue;
    const ExpertKey key{slots[i].expert.load(std::memory_order_relaxed)};
    if (key.value >= experts.size()) continue;
    const std::uint64_t usage = experts[key.value].usage.load(std::memory_order_relaxed);
    usage_at_scan_[i] = usage;
    scratch_slots_.push_back(
        {.slot = SlotId{i},
         .expert = key,
         .origin = static_cast<SlotOrigin>(slots[i].origin.load(std::memory_order_relaxed)),
         .usage = usage,
         .filled_step = filled_step_[i]});
  }
  victims_.clear();
  next_victim_ = 0;
  const auto step = static_cast<std::uint32_t>(pool_.header().step.load(std::memory_order_relaxed));
  const std::size_t batch = Residency::scan_batch(slots.size());
  residency_.choose(scratch_slots_, resident_per_layer_, step, layer, batch, victims_);
}

/// ready -> retiring -> free, unless somebody leases it or has used it since it was chosen.
bool Loader::evict(SlotId id) {
  SlotControl& slot = pool_.slots()[id.value];
  const ExpertKey key{slot.expert.load(std::memory_order_relaxed)};
  if (key.value >= plan_.expert_count()) return false;
  ExpertEntry& entry = pool_.experts()[key.value];
  if (entry.usage.load(std::memory_order_relaxed) != usage_at_scan_[id.value]) return false;
  const auto retired = update(slot, [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::ready || w.readers != 0) return std::nullopt;
    w.state = SlotState::retiring;
    return w;
  });
  if (!retired) return false;
  entry.slot.store(kNone, std::memory_order_relaxed);
  --resident_per_layer_[key.value / plan_.experts_per_layer()];
  auto& counters = pool_.counters().loader;
  if (slot.origin.load(std::memory_order_relaxed) == static_cast<std::uint32_t>(SlotOrigin::hint_unused)) {
    add(counters.hints_wasted);
    add(counters.wasted_bytes, plan_.expert_bytes());
  }
  add(counters.evictions);
  (void)update(slot, [](SlotWord w) -> std::optional<SlotWord> {
    w.state = SlotState::free;  // no lease can appear on a retiring slot
    return w;
  });
  free_slots_.push_back(id.value);
  return true;
}

void Loader::release_quarantine() {
  auto slots = pool_.slots();
  for (std::uint32_t i = 0; i < slots.size(); ++i) {
    const auto freed = update(slots[i], [](SlotWord w) -> std::optional<SlotWord> {
      if (w.state != SlotState::quarantined) return std::nullopt;
      return SlotWord{SlotState::free, w.epoch, 0, w.generation};
    });
    if (freed) free_slots_.push_back(i);
  }
  quarantined_ = 0;
  pool_.counters().loader.quarantined.store(0, std::memory_order_relaxed);
}

}  // namespace stoker
