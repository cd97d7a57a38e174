#include "gpu-worker/expert_uses.h"

#include <algorithm>
#include <string>

#include "shm/base/check.h"

namespace stoker {
namespace {

ExpertId expert_id(std::uint32_t value) { return ExpertId(static_cast<std::uint16_t>(value)); }

void count_tier(StepStats& stats, Tier tier) {
  switch (tier) {
    case Tier::vram:
      ++stats.vram;
      break;
    case Tier::pool:
      ++stats.pool;
      break;
    case Tier::pool_hinted:
      ++stats.hinted;
      break;
    case Tier::disk:
      ++stats.disk;
      break;
    case Tier::disk_late_hint:
      ++stats.late_hint;
      break;
  }
}

}  // namespace

Error not_finite_error(std::size_t layer, std::uint32_t expert) {
  return {Errc::corrupt, 0,
          "expert " + std::to_string(expert) + " of layer " + std::to_string(layer) +
              " produced non-finite values: checkpoint damaged, run `stoker verify`"};
}

ExpertUses::ExpertUses(const ModelConfig& config, std::size_t rows)
    : experts_(config.experts), k_(config.experts_per_token) {
  uses_.resize(experts_);
  pairs_.reserve(rows * k_);
  wanted_.reserve(experts_);
  event_ids_.resize(k_);
  event_candidates_.resize(experts_);
  event_tiers_.resize(k_);
}

/// A counting sort.
void ExpertUses::collect(Step& step, const std::uint32_t* ids, const float* weights) {
  ids_ = ids;
  weights_ = weights;
  std::fill(uses_.begin(), uses_.end(), ExpertUse{});
  wanted_.clear();
  const std::size_t rows = step.rows.size();
  for (std::size_t r = 0; r < rows; ++r) {
    if (!step.row_alive(r)) continue;
    const bool valid =
        std::all_of(ids + r * k_, ids + (r + 1) * k_, [&](std::uint32_t id) { return id < experts_; });
    if (!valid) step.fail(step.rows[r].segment, not_finite_error());
  }
  for (std::size_t r = 0; r < rows; ++r) {
    if (!step.row_alive(r)) continue;
    for (std::size_t i = 0; i < k_; ++i) ++uses_[ids[r * k_ + i]].count;
  }
  std::uint32_t first = 0;
  for (std::uint32_t e = 0; e < experts_; ++e) {
    uses_[e].first = first;
    first += uses_[e].count;
    if (uses_[e].count > 0) wanted_.push_back(expert_id(e));
    uses_[e].count = 0;
  }
  pairs_.resize(first);
  for (std::size_t r = 0; r < rows; ++r) {
    if (!step.row_alive(r)) continue;
    for (std::size_t i = 0; i < k_; ++i) {
      ExpertUse& use = uses_[ids[r * k_ + i]];
      pairs_[use.first + use.count++] = static_cast<std::uint32_t>(r * k_ + i);
    }
  }
}

void ExpertUses::took(Step& step, ExpertId expert, Tier tier) {
  uses_[expert.value].tier = tier;
  count_tier(step.stats, tier);
}

void ExpertUses::fail(Step& step, ExpertId expert, const Error& error) {
  ExpertUse& use = uses_[expert.value];
  use.tier = Tier::disk;
  for (std::uint32_t i = 0; i < use.count; ++i)
    step.fail(step.rows[pairs_[use.first + i] / k_].segment, error);
}

void ExpertUses::not_finite(Step& step, std::size_t layer, std::uint32_t pair) {
  step.fail(step.rows[pair / k_].segment, not_finite_error(layer, ids_[pair]));
}

void ExpertUses::report(const Step& step, std::size_t layer) {
  for (std::size_t r = 0; r < step.rows.size(); ++r) {
    if (!step.row_alive(r)) continue;
    for (std::size_t i = 0; i < k_; ++i) {
      event_ids_[i] = expert_id(ids_[r * k_ + i]);
      event_tiers_[i] = uses_[ids_[r * k_ + i]].tier;
    }
    const Row& row = step.rows[r];
    step.observer->on_routing({static_cast<std::uint32_t>(layer), step.segments[row.segment].sequence_id,
                               row.token, row.position, step.access, event_ids_,
                               std::span(weights_ + r * k_, k_), event_tiers_, step.timing});
  }
}

void ExpertUses::report_lookahead(const Step& step, std::size_t layer, std::size_t row,
                                  const std::uint32_t* candidates, const float* scores, std::size_t count) {
  if (!step.row_alive(row)) return;
  STOKER_CHECK(count <= event_candidates_.size());
  for (std::size_t i = 0; i < count; ++i) event_candidates_[i] = expert_id(candidates[i]);
  for (std::size_t i = 0; i < k_; ++i) event_ids_[i] = expert_id(ids_[row * k_ + i]);
  const Row& at = step.rows[row];
  step.observer->on_lookahead({static_cast<std::uint32_t>(layer + 1), step.segments[at.segment].sequence_id,
                               at.token, event_ids_, std::span(event_candidates_).first(count),
                               std::span(scores, count)});
}

}  // namespace stoker
