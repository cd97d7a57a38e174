// Planted routing locality. An embedding row is
//   x = (common * u + topic * T[topic] + subtopic * S[subtopic] + token * D[token]) / norm
// with independent standard normal vectors u, T, S, D. A router row with independent normal entries of
// standard deviation logit_std / sqrt(hidden) then gives every expert the logit
//   z_e = logit_std / norm * (common * g0 + topic * g1 + subtopic * g2 + token * g3)
// with independent normal g's: the generator of caching.md 6.4. Tokens follow a walk that keeps its
// subtopic for `subtopic_tokens` and its topic for `topic_tokens` on average (geometric, which has the
// autocorrelation of AR(1)).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/synth.h"

namespace stoker {

class RoutingModel {
 public:
  RoutingModel(const SynthSpec& spec);

  /// Numbers from 0 to topics * subtopics - 1; the topic is subtopic / subtopics-per-topic.
  [[nodiscard]] std::uint32_t subtopic(std::uint32_t token) const;
  /// Columns [first, first + row.size()) of the embedding row of `token`.
  void embedding(std::uint32_t token, std::uint64_t first, std::span<float> row) const;
  /// The same of lm_head: logits favour tokens of the present subtopic, then of the topic, so that sampling
  /// at temperature 1 walks much like routing_tokens.txt.
  void head(std::uint32_t token, std::uint64_t first, std::span<float> row) const;
  /// The walk, `count` ids below `vocab`.
  [[nodiscard]] std::vector<std::uint32_t> walk(std::uint32_t count) const;

 private:
  RoutingLocality routing_;
  std::uint64_t seed_;
  std::uint32_t vocab_;
  std::uint64_t hidden_;
  float common_, topic_, subtopic_, token_;  ///< shares with squares that sum to 1
  float head_topic_, head_subtopic_;
};

}  // namespace stoker
