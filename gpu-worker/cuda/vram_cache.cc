#include "gpu-worker/cuda/vram_cache.h"

#include <algorithm>

#include "shm/base/check.h"
#include "shm/usage.h"

namespace stoker {

VramCache::VramCache(std::uint32_t layers, std::uint32_t experts_per_layer, std::uint32_t slots,
                     VramCacheOptions options)
    : layers_(layers),
      experts_per_layer_(experts_per_layer),
      options_(options),
      experts_(std::size_t{layers} * experts_per_layer),
      slots_(slots),
      free_(layers) {
  STOKER_CHECK(layers > 0 && experts_per_layer > 0 && experts_.size() < kNone);
  clear();
}

void VramCache::begin_step() { ++step_; }

std::optional<std::uint32_t> VramCache::find(LayerId layer, ExpertId expert) {
  Expert& e = experts_[key_of(layer, expert)];
  // A second touch in the same step is none of its own.
  if (const std::uint32_t last = unpack_usage(e.usage).step; last != step_) e.before = last;
  e.usage = touch(e.usage, step_);
  const auto slot = peek(layer, expert);
  ++(slot ? counters_.hits : counters_.misses);
  return slot;
}

std::optional<std::uint32_t> VramCache::peek(LayerId layer, ExpertId expert) const {
  const std::uint32_t slot = experts_[key_of(layer, expert)].slot;
  if (slot == kNone || !slots_[slot].ready) return std::nullopt;
  return slot;
}

std::uint32_t VramCache::last_gap(LayerId layer, ExpertId expert) const {
  const Expert& e = experts_[key_of(layer, expert)];
  return e.before == 0 ? kNone : unpack_usage(e.usage).step - e.before;
}

bool VramCache::wants(LayerId layer, ExpertId expert) const {
  const Expert& e = experts_[key_of(layer, expert)];
  if (e.slot != kNone || first_slot(layer.value) == first_slot(layer.value + 1U)) return false;
  if (options_.second_touch_within == 0 || free_[layer.value] > 0) return true;
  return last_gap(layer, expert) <= options_.second_touch_within;
}

std::optional<std::uint32_t> VramCache::admit(LayerId layer, ExpertId expert,
                                              std::span<const ExpertId> event) {
  const std::uint32_t key = key_of(layer, expert);
  if (experts_[key].slot != kNone) return std::nullopt;
  const std::uint32_t chosen = victim(layer, event);
  if (chosen == kNone) return std::nullopt;
  Slot& slot = slots_[chosen];
  if (slot.key == kNone) {
    --free_[layer.value];
  } else {
    experts_[slot.key].slot = kNone;
    --resident_;
    ++counters_.evictions;
  }
  slot = {.key = key, .ready = false};
  experts_[key].slot = chosen;
  ++filling_;
  ++counters_.admissions;
  return chosen;
}

void VramCache::filled(std::uint32_t slot) {
  STOKER_CHECK(slot < slots_.size() && slots_[slot].key != kNone && !slots_[slot].ready);
  slots_[slot].ready = true;
  --filling_;
  ++resident_;
}

void VramCache::abandon(std::uint32_t slot) {
  STOKER_CHECK(slot < slots_.size() && slots_[slot].key != kNone && !slots_[slot].ready);
  const std::uint32_t key = slots_[slot].key;
  experts_[key].slot = kNone;
  slots_[slot] = {};
  ++free_[key / experts_per_layer_];
  --filling_;
  ++counters_.abandoned;
}

void VramCache::clear() {
  STOKER_CHECK(filling_ == 0);
  std::fill(experts_.begin(), experts_.end(), Expert{});
  std::fill(slots_.begin(), slots_.end(), Slot{});
  for (std::uint32_t layer = 0; layer < layers_; ++layer)
    free_[layer] = first_slot(layer + 1) - first_slot(layer);
  resident_ = 0;
}

std::uint32_t VramCache::key_of(LayerId layer, ExpertId expert) const {
  STOKER_CHECK(layer.value < layers_ && expert.value < experts_per_layer_);
  return std::uint32_t{layer.value} * experts_per_layer_ + expert.value;
}

std::uint32_t VramCache::first_slot(std::uint32_t layer) const {
  return static_cast<std::uint32_t>(std::uint64_t{layer} * slots_.size() / layers_);
}

/// A free slot, else the one with the lowest score; kNone if all are filling or in the event.
std::uint32_t VramCache::victim(LayerId layer, std::span<const ExpertId> event) const {
  std::uint32_t best = kNone;
  float lowest = 0;
  const std::uint32_t end = first_slot(layer.value + 1U);
  for (std::uint32_t i = first_slot(layer.value); i < end; ++i) {
    const Slot& slot = slots_[i];
    if (slot.key == kNone) return i;
    if (!slot.ready) continue;
    const float score_here = score(slot.key);
    if (best != kNone && score_here >= lowest) continue;
    const ExpertId holds{static_cast<std::uint16_t>(slot.key % experts_per_layer_)};
    if (std::find(event.begin(), event.end(), holds) != event.end()) continue;
    best = i;
    lowest = score_here;
  }
  return best;
}

/// Higher is kept longer.
float VramCache::score(std::uint32_t key) const {
  const Usage u = unpack_usage(experts_[key].usage);
  const std::uint32_t age = usage_age(u.step, step_);
  const float visits = static_cast<float>(age) + 1.0F;
  return u.frequency * usage_decay(age) / (visits * visits);
}

}  // namespace stoker
