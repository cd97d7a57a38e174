#include "trace/tiered_replay.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "trace/events.h"
#include "trace/pool_model.h"

namespace stoker {
namespace {

class Tiers {
 public:
  Tiers(const TraceShape& shape, const TieredReplayOptions& options)
      : experts_(shape.experts),
        options_(options),
        vram_(shape.layers, shape.experts, options.vram_slots, options.vram),
        pool_(shape.layers, shape.experts, options.pool_slots),
        seen_(std::size_t{shape.layers} * shape.experts) {
    if (options.pool_slots < seen_.size()) return;
    for (std::uint32_t key = 0; key < seen_.size(); ++key) pool_.hint(0, key);
  }

  void use(const TraceEvent& event) {
    if (event.step != step_) {
      vram_.begin_step();
      step_ = event.step;
    }
    EventTiers tiers;
    find(event, tiers);
    const std::uint64_t compulsory = look_in_pool(event, tiers);
    copy(event, tiers);
    for (const std::uint32_t key : event.keys) seen_[key] = true;
    if (event.first_token >= options_.skip) count(tiers, compulsory);
  }

  TieredReplayResult take(const Trace& trace) {
    const auto& tokens = trace.tokens;
    for (std::size_t i = 0, first = 0; i < tokens.size(); ++i) {
      if (i > 0 && tokens[i].step != tokens[i - 1].step) first = i;
      if (first < options_.skip) continue;
      ++result_.tokens;
      result_.steps += i == first ? 1U : 0U;
    }
    return std::move(result_);
  }

 private:
  [[nodiscard]] ExpertId expert_of(std::uint32_t key) const {
    return ExpertId{static_cast<std::uint16_t>(key % experts_)};
  }

  /// What is not in device memory is in `elsewhere_` afterwards.
  void find(const TraceEvent& event, EventTiers& tiers) {
    const LayerId layer{static_cast<std::uint16_t>(event.layer)};
    elsewhere_.clear();
    wanted_.clear();
    for (const std::uint32_t key : event.keys) {
      wanted_.push_back(expert_of(key));
      if (!vram_.find(layer, wanted_.back())) {
        elsewhere_.push_back(key);
        continue;
      }
      ++tiers.vram;
      if (options_.pool_hears == PoolHears::all_uses) pool_.note_use(event.step + 1, key);
    }
  }

  /// `elsewhere_` is in the order in which the lanes meet them afterwards: what must be read comes last.
  /// Gives how many were never used before.
  std::uint64_t look_in_pool(const TraceEvent& event, EventTiers& tiers) {
    // Step 0 of the pool is that of what is there before the trace begins.
    pool_.use(event.step + 1, event.layer, elsewhere_, found_);
    std::uint64_t compulsory = 0;
    arrived_.clear();
    for (const bool from_disk : {false, true})
      for (std::size_t i = 0; i < elsewhere_.size(); ++i) {
        if ((found_[i] == Found::absent) != from_disk) continue;
        ++(from_disk ? tiers.disk : tiers.pool);
        compulsory += from_disk && !seen_[elsewhere_[i]] ? 1U : 0U;
        arrived_.push_back(elsewhere_[i]);
      }
    return compulsory;
  }

  void copy(const TraceEvent& event, EventTiers& tiers) {
    const LayerId layer{static_cast<std::uint16_t>(event.layer)};
    choose_copies(layer);
    tiers.copied = static_cast<std::uint32_t>(copied_.size());
    for (const std::uint32_t key : copied_) {
      if (!vram_.wants(layer, expert_of(key))) continue;
      const auto slot = vram_.admit(layer, expert_of(key), wanted_);
      if (!slot) continue;
      vram_.filled(*slot);
      ++tiers.promoted;
      if (options_.pool_hears == PoolHears::exclusive) pool_.forget_uses(key);
    }
  }

  void choose_copies(LayerId layer) {
    LaneSplit lanes(options_.cpu_rate, options_.copy_rate);
    copied_.clear();
    for (const std::uint32_t key : arrived_)
      if (options_.cpu_rate == 0 || lanes.choose(1, 1) == Lane::gpu) copied_.push_back(key);
    if (options_.copies == CopyChoice::in_order) return;
    const std::size_t count = copied_.size();
    copied_ = arrived_;
    std::stable_sort(copied_.begin(), copied_.end(), [&](std::uint32_t a, std::uint32_t b) {
      return vram_.last_gap(layer, expert_of(a)) < vram_.last_gap(layer, expert_of(b));
    });
    copied_.resize(count);
  }

  void count(const EventTiers& tiers, std::uint64_t compulsory) {
    result_.vram += tiers.vram;
    result_.pool += tiers.pool;
    result_.disk += tiers.disk;
    result_.copied += tiers.copied;
    result_.promoted += tiers.promoted;
    result_.compulsory += compulsory;
    ++result_.events[tiers];
  }

  std::uint32_t experts_;
  TieredReplayOptions options_;
  VramCache vram_;
  PoolModel pool_;
  std::vector<bool> seen_;  ///< by key
  std::uint32_t step_ = kNone;
  std::vector<std::uint32_t> elsewhere_, arrived_, copied_;  ///< keys
  std::vector<ExpertId> wanted_;
  std::vector<Found> found_;
  TieredReplayResult result_;
};

}  // namespace

TieredReplayResult tiered_replay(const Trace& trace, const TieredReplayOptions& options) {
  Tiers tiers(trace.shape, options);
  for (const TraceEvent& event : events_of(trace)) tiers.use(event);
  return tiers.take(trace);
}

}  // namespace stoker
