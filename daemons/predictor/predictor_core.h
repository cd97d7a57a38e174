// From routing samples to hints, and how good they were. Pure: no sockets, no clock.
//
// Source of guesses: the look-ahead router (the next layer's router applied to this layer's hidden state,
// measured by the worker). The core decides how many of its candidates are worth a hint, once per expert,
// layer and step, and never for a layer that has been routed already.
//
// Restraint (caching.md 7.3): prefetch that competes with demand costs more than it brings. What counts is
// used / issued, where both are the loader's own counters (it alone knows which hints became reads): below
// 0.35 over a window the width is halved, and at the last width hints stop for a window; above 0.6 it grows
// by one. After a pause it starts again at width 1.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "stoker.pb.h"

namespace stoker {

struct PredictorOptions {
  std::uint32_t width_max = 16;  ///< candidates hinted per sample at most
  std::uint32_t width_start = 8;
  std::uint32_t window_steps = 64;       ///< between two decisions about the width
  std::uint64_t window_issued_min = 16;  ///< fewer reads than this say nothing
  double retreat_below = 0.35;
  double advance_above = 0.60;
  float confidence_min = 0.005F;  ///< router probability below which a candidate is noise
};

/// Sums over the life of the predictor, in expert uses of decode steps.
struct PredictorScore {
  std::uint64_t samples = 0;       ///< look-aheads seen
  std::uint64_t hinted = 0;        ///< hints sent
  std::uint64_t expired = 0;       ///< look-aheads for a layer that had been routed already: not sent
  std::uint64_t right = 0;         ///< hinted, then chosen
  std::uint64_t chosen = 0;        ///< experts chosen where a look-ahead existed
  std::uint64_t cold = 0;          ///< of these: not resident without a hint (hinted, late or disk)
  std::uint64_t cold_served = 0;   ///< of the cold: in the pool in time because of a hint
  std::uint64_t cold_late = 0;     ///< of the cold: the hint's read was still in flight
  std::uint64_t cold_dropped = 0;  ///< of the cold: hinted, yet read on demand (the hint was dropped)

  [[nodiscard]] double precision() const { return ratio(right, hinted); }
  /// Recall on experts that were not resident: the share of cold uses that a hint served.
  [[nodiscard]] double cold_recall() const { return ratio(cold_served, cold); }
  void add(const PredictorScore& other);

 private:
  static double ratio(std::uint64_t part, std::uint64_t whole) {
    return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
  }
};

class PredictorCore {
 public:
  explicit PredictorCore(const PredictorOptions& options);

  /// Hints to send now, if any. The sample has passed decode_sample().
  std::optional<wire::HintBatch> on_sample(const wire::RoutingSample& sample);

  [[nodiscard]] PredictorScore score() const;
  [[nodiscard]] const std::map<std::uint32_t, PredictorScore>& layer_scores() const { return scores_; }
  /// Candidates per look-ahead in force; 0 = paused.
  [[nodiscard]] std::uint32_t width() const { return width_; }
  /// The loader's view at the last feedback.
  [[nodiscard]] const wire::HintFeedback& feedback() const { return feedback_; }
  /// JSON object with all of it; what predictor.json holds.
  [[nodiscard]] std::string json() const;

 private:
  /// What was hinted for one layer in the current step, and for whom look-aheads were seen.
  struct LayerState {
    std::vector<std::uint32_t> hinted;      ///< experts, distinct
    std::vector<std::uint32_t> not_scored;  ///< hinted and not yet found among the chosen
    bool lookahead = false;
    bool routed = false;
  };

  void begin_step(std::uint64_t step);
  std::optional<wire::HintBatch> guess(const wire::RoutingSample& sample);
  void judge(const wire::RoutingSample& sample);
  void adapt(const wire::HintFeedback& feedback);

  PredictorOptions options_;
  std::uint64_t step_ = 0;
  std::unordered_map<std::uint32_t, LayerState> layers_;  ///< of the current step; cleared with each
  std::map<std::uint32_t, PredictorScore> scores_;
  std::uint32_t width_;
  std::uint64_t steps_in_window_ = 0;
  wire::HintFeedback feedback_, window_start_;
  bool have_feedback_ = false;
};

}  // namespace stoker
