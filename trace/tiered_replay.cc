#include "trace/tiered_replay.h"

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
    // Step 0 of the pool is that of what is there before the trace begins.
    pool_.use(event.step + 1, event.layer, elsewhere_, found_);
    std::uint64_t compulsory = 0;
    for (std::size_t i = 0; i < elsewhere_.size(); ++i) {
      const bool absent = found_[i] == Found::absent;
      ++(absent ? tiers.disk : tiers.pool);
      compulsory += absent && !seen_[elsewhere_[i]] ? 1U : 0U;
    }
    promote(event, tiers);
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

  void promote(const TraceEvent& event, EventTiers& tiers) {
    const LayerId layer{static_cast<std::uint16_t>(event.layer)};
    for (const std::uint32_t key : elsewhere_) {
      if (!vram_.wants(layer, expert_of(key))) continue;
      const auto slot = vram_.admit(layer, expert_of(key), wanted_);
      if (!slot) continue;
      vram_.filled(*slot);
      ++tiers.promoted;
      if (options_.pool_hears == PoolHears::exclusive) pool_.forget_uses(key);
    }
  }

  void count(const EventTiers& tiers, std::uint64_t compulsory) {
    result_.vram += tiers.vram;
    result_.pool += tiers.pool;
    result_.disk += tiers.disk;
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
  std::vector<std::uint32_t> elsewhere_;
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
