// Wire messages on one side, the predictor's core on the other.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "predictor/predictor_core.h"
#include "stoker.pb.h"

namespace stoker {

class SampleReader {
 public:
  explicit SampleReader(const PredictorOptions& options) : core_(options) {}

  /// Hints to send now, if any. The sample has passed decode_sample().
  const wire::HintBatch* on_sample(const wire::RoutingSample& sample);
  [[nodiscard]] const PredictorCore& core() const { return core_; }
  /// JSON object with everything the predictor knows about itself; what predictor.json holds.
  [[nodiscard]] std::string json() const;

 private:
  PredictorCore core_;
  std::uint64_t samples_ = 0, step_ = 0;
  // Reused.
  wire::HintBatch batch_;
  std::vector<std::uint16_t> chosen_, candidates_;
  std::vector<std::uint8_t> tiers_;
};

}  // namespace stoker
