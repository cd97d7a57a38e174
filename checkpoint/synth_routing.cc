#include "checkpoint/synth_routing.h"

#include <algorithm>
#include <cmath>

#include "checkpoint/synth_random.h"

namespace stoker {

RoutingModel::RoutingModel(const SynthSpec& spec)
    : routing_(spec.routing),
      seed_(spec.seed),
      vocab_(spec.routing_vocab == 0 ? spec.config.vocab_size
                                     : std::min(spec.routing_vocab, spec.config.vocab_size)),
      hidden_(spec.config.hidden_size) {
  const RoutingLocality& r = routing_;
  const double norm =
      std::sqrt(r.common * r.common + r.topic * r.topic + r.subtopic * r.subtopic + r.token * r.token);
  common_ = static_cast<float>(r.common / norm);
  topic_ = static_cast<float>(r.topic / norm);
  subtopic_ = static_cast<float>(r.subtopic / norm);
  token_ = static_cast<float>(r.token / norm);
  // Logit of a token in the same subtopic: head_subtopic * subtopic_ + head_topic * topic_ above the rest.
  // With n groups of equal size, staying in the subtopic has the odds e^(a+b) : (subtopics-1) e^b : n, which
  // is solved here for the walk's probabilities.
  const double stay = 1 - 1 / r.subtopic_tokens, jump = 1 / r.topic_tokens;
  const double groups = static_cast<double>(r.topics) * r.subtopics;
  const double move = std::max(1e-6, 1 - stay - jump);
  const double b = std::log(std::max(1.0, move / std::max(1.0, r.subtopics - 1.0) * groups / jump));
  const double a = std::log(std::max(1.0, stay / move * std::max(1.0, r.subtopics - 1.0)));
  head_topic_ = static_cast<float>(b / std::max(1e-3, static_cast<double>(topic_)));
  head_subtopic_ = static_cast<float>(a / std::max(1e-3, static_cast<double>(subtopic_)));
}

std::uint32_t RoutingModel::subtopic(std::uint32_t token) const {
  // Ids are dealt in a scattered order, so that any range of ids (a small tokenizer) meets all subtopics.
  return static_cast<std::uint32_t>((std::uint64_t{token} * 0x9E3779B1U) %
                                    (routing_.topics * routing_.subtopics));
}

void RoutingModel::embedding(std::uint32_t token, std::uint64_t first, std::span<float> row) const {
  const std::uint64_t sub = subtopic(token), topic = sub / routing_.subtopics;
  const RandomStream common(seed_, "u"), topics(seed_, "T"), subtopics(seed_, "S"), tokens(seed_, "D");
  for (std::uint64_t i = 0; i < row.size(); ++i) {
    const std::uint64_t j = first + i;
    row[i] = common_ * common.normal(j) + topic_ * topics.normal(topic * hidden_ + j) +
             subtopic_ * subtopics.normal(sub * hidden_ + j) + token_ * tokens.normal(token * hidden_ + j);
  }
}

void RoutingModel::head(std::uint32_t token, std::uint64_t first, std::span<float> row) const {
  const std::uint64_t sub = subtopic(token), topic = sub / routing_.subtopics;
  const RandomStream topics(seed_, "T"), subtopics(seed_, "S"), tokens(seed_, "H");
  const float size = 1.0F / static_cast<float>(hidden_);
  const float noise = 0.5F / std::sqrt(static_cast<float>(hidden_));
  for (std::uint64_t i = 0; i < row.size(); ++i) {
    const std::uint64_t j = first + i;
    row[i] = size * (head_topic_ * topics.normal(topic * hidden_ + j) +
                     head_subtopic_ * subtopics.normal(sub * hidden_ + j)) +
             noise * tokens.normal(token * hidden_ + j);
  }
}

std::vector<std::uint32_t> RoutingModel::walk(std::uint32_t count) const {
  const std::uint32_t groups = routing_.topics * routing_.subtopics;
  std::vector<std::vector<std::uint32_t>> members(groups);
  for (std::uint32_t token = 0; token < vocab_; ++token) members[subtopic(token)].push_back(token);
  const RandomStream stream(seed_, "walk");
  std::uint64_t counter = 0;
  const auto below = [&](std::uint32_t n) { return static_cast<std::uint32_t>(stream.bits(counter++) % n); };
  std::vector<std::uint32_t> out;
  out.reserve(count);
  std::uint32_t topic = below(routing_.topics), sub = below(routing_.subtopics);
  const auto topic_change = static_cast<float>(1 / routing_.topic_tokens);
  const auto subtopic_change = static_cast<float>(1 / routing_.subtopic_tokens);
  while (out.size() < count) {
    const float u = stream.uniform(counter++);
    if (u < topic_change) topic = below(routing_.topics);
    if (u < topic_change + subtopic_change) sub = below(routing_.subtopics);
    const auto& tokens = members[topic * routing_.subtopics + sub];
    if (tokens.empty()) {  // a vocabulary smaller than the number of subtopics: look further
      sub = below(routing_.subtopics);
      topic = below(routing_.topics);
      continue;
    }
    out.push_back(tokens[below(static_cast<std::uint32_t>(tokens.size()))]);
  }
  return out;
}

}  // namespace stoker
