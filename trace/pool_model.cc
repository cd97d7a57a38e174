#include "trace/pool_model.h"

#include "shm/usage.h"

namespace stoker {

namespace {
constexpr ExpertKey kNobody{0xFFFFFFFF};
}

PoolModel::PoolModel(std::uint32_t layers, std::uint32_t experts, std::uint32_t slots)
    : experts_per_layer_(experts),
      experts_(std::size_t{layers} * experts),
      slots_(slots),
      per_layer_(layers),
      residency_(layers, experts, slots),
      usage_at_scan_(slots) {
  for (std::uint32_t i = slots; i-- > 0;) {
    slots_[i].slot = SlotId{i};
    slots_[i].expert = kNobody;
    free_.push_back(i);
  }
}

void PoolModel::use(std::uint32_t step, std::uint32_t layer, std::span<const std::uint32_t> keys,
                    std::vector<Found>& found) {
  ++event_;
  found.clear();
  for (const std::uint32_t key : keys) {
    Expert& e = experts_[key];
    e.leased_by = event_;
    e.usage = touch(e.usage, step);
    found.push_back(Found::absent);
    if (e.slot == kAbsent) continue;
    ResidentSlot& slot = slots_[e.slot];
    found.back() = slot.origin == SlotOrigin::hint_unused ? Found::hinted : Found::resident;
    used_ += found.back() == Found::hinted ? 1U : 0U;
    slot.origin = SlotOrigin::demand;
  }
  for (const std::uint32_t key : keys)
    if (experts_[key].slot == kAbsent && make_room(step, layer)) fill(step, key, SlotOrigin::demand);
}

bool PoolModel::hint(std::uint32_t step, std::uint32_t key) {
  if (experts_[key].slot != kAbsent || !make_room(step, key / experts_per_layer_)) return false;
  fill(step, key, SlotOrigin::hint_unused);
  ++issued_;
  return true;
}

void PoolModel::note_use(std::uint32_t step, std::uint32_t key) {
  experts_[key].usage = touch(experts_[key].usage, step);
}

/// As the loader does: victims come in batches from one scan, and who has been used since is spared.
bool PoolModel::make_room(std::uint32_t step, std::uint32_t layer) {
  if (!free_.empty()) return true;
  for (int round = 0; round < 2; ++round) {
    while (next_victim_ < victims_.size()) {
      const std::uint32_t slot = victims_[next_victim_++].value;
      if (slots_[slot].expert == kNobody) continue;
      const Expert& e = experts_[slots_[slot].expert.value];
      if (e.leased_by == event_ || e.usage != usage_at_scan_[slot]) continue;
      evict(slot);
      return true;
    }
    if (round == 0) scan(step, layer);
  }
  return false;
}

void PoolModel::scan(std::uint32_t step, std::uint32_t layer) {
  offered_.clear();
  for (ResidentSlot& slot : slots_) {
    if (slot.expert == kNobody || experts_[slot.expert.value].leased_by == event_) continue;
    slot.usage = usage_at_scan_[slot.slot.value] = experts_[slot.expert.value].usage;
    offered_.push_back(slot);
  }
  victims_.clear();
  next_victim_ = 0;
  residency_.choose(offered_, per_layer_, step, layer, Residency::scan_batch(slots_.size()), victims_);
}

void PoolModel::evict(std::uint32_t slot) {
  ResidentSlot& s = slots_[slot];
  wasted_ += s.origin == SlotOrigin::hint_unused ? 1U : 0U;
  experts_[s.expert.value].slot = kAbsent;
  --per_layer_[s.expert.value / experts_per_layer_];
  s.expert = kNobody;
  free_.push_back(slot);
}

void PoolModel::fill(std::uint32_t step, std::uint32_t key, SlotOrigin origin) {
  const std::uint32_t slot = free_.back();
  free_.pop_back();
  slots_[slot].expert = ExpertKey{key};
  slots_[slot].origin = origin;
  slots_[slot].filled_step = step;
  experts_[key].slot = slot;
  ++per_layer_[key / experts_per_layer_];
}

}  // namespace stoker
