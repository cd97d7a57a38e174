#include "predictor/blend.h"

#include <algorithm>

namespace stoker {

namespace {
constexpr float kRate = 0.01F;      // of features that take part in every guess
constexpr float kRankRate = 0.05F;  // a rank is met once per row
}  // namespace

Blend::Blend(std::uint32_t layers, std::uint32_t top_k, bool ranked) {
  Weights start{.bias = -3.5F, .cross = 1.0F, .token = 1.2F, .recent = 0.5F, .popular = 0.3F, .rank = {}};
  if (ranked) {
    start.cross = 0.5F;
    start.token = 0.6F;
    const float step = 2.5F / static_cast<float>(std::max(1U, top_k));
    for (std::size_t r = 0; r < start.rank.size(); ++r)
      start.rank[r] = r == Features::kNoRank ? -1.5F : std::max(-1.5F, 5.0F - step * static_cast<float>(r));
  }
  layers_.assign(layers, start);
}

float Blend::probability(std::uint32_t layer, const Features& f) const {
  const Weights& w = layers_[layer];
  const float z = w.bias + w.cross * f.cross + w.token * f.token + w.recent * f.recent +
                  w.popular * f.popular + w.rank[f.rank];
  return 1.0F / (1.0F + std::exp(-z));
}

/// One candidate after the other with the weights as they are by then: a step with all candidates' errors at
/// once overshoots, because their features are much alike.
void Blend::learn(std::uint32_t layer, const Features& f, bool chosen) {
  const float error = (chosen ? 1.0F : 0.0F) - probability(layer, f);
  Weights& w = layers_[layer];
  w.bias += kRate * error;
  w.cross += kRate * error * f.cross;
  w.token += kRate * error * f.token;
  w.recent += kRate * error * f.recent;
  w.popular += kRate * error * f.popular;
  w.rank[f.rank] += kRankRate * error;
}

}  // namespace stoker
