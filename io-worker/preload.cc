#include "io-worker/preload.h"

#include <algorithm>
#include <tuple>

#include "io-worker/loader.h"

namespace stoker {

namespace {
/// A quarter of the fills that hints and preloads share, so that hints always find one.
constexpr std::size_t kPreloadFillsMax = 16;
}  // namespace

Preload::Preload(const WarmManifest& manifest, const ExpertPlan& plan, std::size_t slots) {
  for (const WarmExpert& e : manifest) {
    if (order_.size() == slots) break;
    if (e.expert.value < plan.expert_count()) order_.push_back(e.expert);
  }
  const auto on_disk = [&](ExpertKey key) {
    const Extent& first = *plan.extents(key).first;
    return std::tuple(first.file, first.offset);
  };
  for (std::size_t begin = 0; begin < order_.size(); begin += kChunk) {
    const auto first = order_.begin() + static_cast<std::ptrdiff_t>(begin);
    const auto last = order_.begin() + static_cast<std::ptrdiff_t>(std::min(order_.size(), begin + kChunk));
    std::sort(first, last, [&](ExpertKey a, ExpertKey b) { return on_disk(a) < on_disk(b); });
  }
}

void Loader::set_preload(Preload& preload) {
  preload_ = &preload;
  pool_.counters().loader.warm_planned.store(preload.planned(), std::memory_order_relaxed);
}

bool Loader::may_preload() const {
  const std::uint64_t expert = plan_.slot_bytes();
  if (demand_fills_ > 0 || !hints_.empty() || preload_->reading() >= kPreloadFillsMax ||
      !room_for(static_cast<std::uint32_t>(expert)))
    return false;
  if (preload_->reading() == 0) return true;
  return clock_.now() - last_demand_ >= kPreloadQuiet &&
         bytes_in_flight_ + 2 * expert <= options_.bytes_in_flight &&
         (reading_.size() + 2) * kExtentsMax <= engine_.capacity();
}

void Loader::start_preload() {
  if (preload_ == nullptr) return;
  while (!preload_->all_started() && may_preload()) {
    if (free_slots_.empty()) {
      if (quarantined_ == 0) preload_->give_up();
      return;
    }
    const ExpertKey key = preload_->take_next();
    if (fill_of_expert_[key.value] != kNoFill ||
        pool_.experts()[key.value].slot.load(std::memory_order_relaxed) != kNone)
      continue;
    const FillIndex index = new_fill(key, false);
    fills_[index].began_as_hint = false;
    fills_[index].preload = true;
    preload_->began();
    STOKER_CHECK(start(index));  // there is a free slot
  }
}

}  // namespace stoker
