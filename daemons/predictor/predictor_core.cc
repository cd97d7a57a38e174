#include "daemons/predictor/predictor_core.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace stoker {
namespace {

// Values of Tier in gpu-worker/expert_source.h as they travel in RoutingSample::tiers; the predictor does
// not include the worker's headers.
constexpr std::uint32_t kTierHinted = 2;
constexpr std::uint32_t kTierDisk = 3;
constexpr std::uint32_t kTierLate = 4;

bool contains(const std::vector<std::uint32_t>& values, std::uint32_t value) {
  return std::find(values.begin(), values.end(), value) != values.end();
}

nlohmann::json score_json(const PredictorScore& s) {
  return {{"samples", s.samples},
          {"hinted", s.hinted},
          {"expired", s.expired},
          {"right", s.right},
          {"chosen", s.chosen},
          {"cold", s.cold},
          {"cold_served", s.cold_served},
          {"cold_late", s.cold_late},
          {"cold_dropped", s.cold_dropped},
          {"precision", s.precision()},
          {"cold_recall", s.cold_recall()}};
}

}  // namespace

void PredictorScore::add(const PredictorScore& other) {
  samples += other.samples;
  hinted += other.hinted;
  expired += other.expired;
  right += other.right;
  chosen += other.chosen;
  cold += other.cold;
  cold_served += other.cold_served;
  cold_late += other.cold_late;
  cold_dropped += other.cold_dropped;
}

PredictorCore::PredictorCore(const PredictorOptions& options)
    : options_(options), width_(std::min(options.width_start, options.width_max)) {}

std::optional<wire::HintBatch> PredictorCore::on_sample(const wire::RoutingSample& sample) {
  // Steps of several sequences share one number. A number that runs backwards is another worker (or a
  // restarted pool): begin afresh.
  if (sample.step() != step_) begin_step(sample.step());
  if (sample.chosen_size() > 0) judge(sample);
  if (sample.has_feedback()) adapt(sample.feedback());
  if (sample.lookahead_size() > 0) return guess(sample);
  return std::nullopt;
}

void PredictorCore::begin_step(std::uint64_t step) {
  step_ = step;
  ++steps_in_window_;
  layers_.clear();
}

std::optional<wire::HintBatch> PredictorCore::guess(const wire::RoutingSample& sample) {
  const std::uint32_t layer = sample.lookahead_layer();
  LayerState& state = layers_[layer];
  PredictorScore& score = scores_[layer];
  ++score.samples;
  if (state.routed) {
    ++score.expired;
    return std::nullopt;
  }
  state.lookahead = true;
  wire::HintBatch batch;
  batch.set_step(sample.step());
  batch.set_deadline_layer(layer);
  const int count = std::min(sample.lookahead_size(), static_cast<int>(width_));
  for (int i = 0; i < count; ++i) {
    const std::uint32_t expert = sample.lookahead(i);
    const float confidence = std::clamp(sample.lookahead_scores(i), 0.0F, 1.0F);
    if (confidence < options_.confidence_min || contains(state.hinted, expert)) continue;
    state.hinted.push_back(expert);
    state.not_scored.push_back(expert);
    wire::Hint& hint = *batch.add_hints();
    hint.set_layer(layer);
    hint.set_expert(expert);
    hint.set_confidence(confidence);
  }
  if (batch.hints_size() == 0) return std::nullopt;
  score.hinted += static_cast<std::uint64_t>(batch.hints_size());
  return batch;
}

void PredictorCore::judge(const wire::RoutingSample& sample) {
  LayerState& state = layers_[sample.layer()];
  state.routed = true;
  if (!state.lookahead) return;  // layer 0, or a lost sample: nothing was predicted
  PredictorScore& score = scores_[sample.layer()];
  for (int i = 0; i < sample.chosen_size(); ++i) {
    const std::uint32_t expert = sample.chosen(i), tier = sample.tiers(i);
    ++score.chosen;
    // Chosen by two sequences of the batch: one hint, one success.
    if (std::erase(state.not_scored, expert) > 0) ++score.right;
    if (tier < kTierHinted) continue;
    ++score.cold;
    if (tier == kTierHinted) ++score.cold_served;
    if (tier == kTierLate) ++score.cold_late;
    if (tier == kTierDisk && contains(state.hinted, expert)) ++score.cold_dropped;
  }
}

void PredictorCore::adapt(const wire::HintFeedback& feedback) {
  // Counters that ran backwards belong to a new pool.
  if (!have_feedback_ || feedback.issued() < feedback_.issued() || feedback.used() < feedback_.used()) {
    window_start_ = feedback;
    steps_in_window_ = 0;
  }
  have_feedback_ = true;
  feedback_ = feedback;
  if (steps_in_window_ < options_.window_steps) return;
  const std::uint64_t issued = feedback.issued() - window_start_.issued();
  const std::uint64_t used = feedback.used() + feedback.late() - window_start_.used() -
                             std::min(feedback.late(), window_start_.late());
  if (width_ == 0) {
    width_ = 1;
  } else if (issued >= options_.window_issued_min) {
    const double share = static_cast<double>(used) / static_cast<double>(issued);
    if (share < options_.retreat_below) width_ /= 2;
    if (share > options_.advance_above) width_ = std::min(width_ + 1, options_.width_max);
  }
  window_start_ = feedback;
  steps_in_window_ = 0;
}

PredictorScore PredictorCore::score() const {
  PredictorScore sum;
  for (const auto& [layer, score] : scores_) sum.add(score);
  return sum;
}

std::string PredictorCore::json() const {
  nlohmann::json out = score_json(score());
  out["width"] = width_;
  out["step"] = step_;
  out["loader"] = {{"issued", feedback_.issued()}, {"used", feedback_.used()},
                   {"late", feedback_.late()},     {"dropped", feedback_.dropped()},
                   {"wasted", feedback_.wasted()}, {"wasted_bytes", feedback_.wasted_bytes()}};
  nlohmann::json layers = nlohmann::json::object();
  for (const auto& [layer, score] : scores_) layers[std::to_string(layer)] = score_json(score);
  out["layers"] = std::move(layers);
  return out.dump();
}

}  // namespace stoker
