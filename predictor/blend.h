// One probability out of what the sources say: logistic regression per layer, learned as routing comes in.
//
// Features are small non-negative numbers that are 0 where a source has nothing to say, so that a source that
// is absent (no look-ahead, unknown token) needs no special case. The look-ahead enters by rank: what a
// rank is worth differs from layer to layer and from model to model, and traces keep ranks only.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

namespace stoker {

struct Features {
  static constexpr std::uint8_t kNoRank = 32;
  float cross = 0;              ///< what the layer before (or some layers before) chose
  float token = 0;              ///< what this token id chose before
  float recent = 0;             ///< how recently the expert was used
  float popular = 0;            ///< how often
  std::uint8_t rank = kNoRank;  ///< among the look-ahead's candidates
};

/// A share of uses as a feature: 0 stays 0, small shares count in orders of magnitude.
inline float share_feature(float share) { return std::log1p(share * 100.0F) * 0.5F; }

class Blend {
 public:
  /// `ranked`: a look-ahead takes part. Weights start where trained ones were found, so that the first
  /// tokens are not wasted; `top_k` scales the ranks.
  Blend(std::uint32_t layers, std::uint32_t top_k, bool ranked);
  [[nodiscard]] float probability(std::uint32_t layer, const Features& f) const;
  void learn(std::uint32_t layer, const Features& f, bool chosen);

 private:
  struct Weights {
    float bias = 0, cross = 0, token = 0, recent = 0, popular = 0;
    std::array<float, Features::kNoRank + 1> rank{};
  };
  std::vector<Weights> layers_;
};

}  // namespace stoker
