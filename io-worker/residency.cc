#include "io-worker/residency.h"

#include <algorithm>
#include <cmath>

#include "shm/usage.h"

namespace stoker {

namespace {
constexpr float kWrongGuess = -1.0F;  // below every score
constexpr float kFreshHint = 1e30F;   // above every score
}  // namespace

Residency::Residency(std::uint32_t layers, std::uint32_t experts_per_layer, std::uint32_t slot_count)
    : experts_per_layer_(experts_per_layer), floor_(std::min(kFloorPerLayer, slot_count / layers / 2)) {
  const float per_layer = static_cast<float>(slot_count) / static_cast<float>(layers);
  const float exponent = 1.0F + std::min(0.5F, 12.0F / per_layer);
  by_age_.reserve(kAges);
  for (std::uint32_t age = 0; age < kAges; ++age)
    by_age_.push_back(usage_decay(age) / std::pow(static_cast<float>(age + 1), exponent));
  ranked_.reserve(slot_count);
  left_.reserve(layers);
}

float Residency::score(std::uint64_t usage, std::uint32_t step) const {
  const Usage u = unpack_usage(usage);
  return u.frequency * by_age_[std::min(usage_age(u.step, step), kAges - 1)];
}

void Residency::choose(std::span<ResidentSlot> slots, std::span<const std::uint32_t> resident_per_layer,
                       std::uint32_t step, std::uint32_t layer, std::size_t count, std::vector<SlotId>& out) {
  ranked_.clear();
  for (std::uint32_t i = 0; i < slots.size(); ++i) {
    const ResidentSlot& s = slots[i];
    const bool ahead = s.expert.value / experts_per_layer_ > layer;
    float rank = score(s.usage, ahead ? step - 1 : step);
    if (s.origin == SlotOrigin::hint_unused)
      rank = step - s.filled_step > kHintGraceSteps ? kWrongGuess : kFreshHint;
    ranked_.push_back({rank, i});
  }
  // Ties (mostly never-used slots) go to the older fill, then to the lower slot: a fixed order, so that
  // replay and daemon agree.
  const auto before = [&](const Ranked& a, const Ranked& b) {
    if (a.rank != b.rank) return a.rank < b.rank;
    const ResidentSlot& x = slots[a.index];
    const ResidentSlot& y = slots[b.index];
    if (x.filled_step != y.filled_step) return x.filled_step < y.filled_step;
    return x.slot < y.slot;
  };
  // The floor skips some, so rank a few more than asked for before falling back to a full sort.
  const std::size_t sorted = std::min(ranked_.size(), count * 2 + 16);
  std::partial_sort(ranked_.begin(), ranked_.begin() + static_cast<std::ptrdiff_t>(sorted), ranked_.end(),
                    before);
  left_.assign(resident_per_layer.begin(), resident_per_layer.end());
  const std::size_t wanted = out.size() + count;
  for (std::size_t i = 0; i < ranked_.size() && out.size() < wanted; ++i) {
    if (i == sorted) std::sort(ranked_.begin() + static_cast<std::ptrdiff_t>(sorted), ranked_.end(), before);
    const ResidentSlot& s = slots[ranked_[i].index];
    std::uint32_t& left = left_[s.expert.value / experts_per_layer_];
    if (left <= floor_) continue;
    --left;
    out.push_back(s.slot);
  }
  // Every layer is at its floor: serving the demand comes before fairness.
  if (out.size() + count == wanted && !ranked_.empty()) out.push_back(slots[ranked_[0].index].slot);
}

}  // namespace stoker
