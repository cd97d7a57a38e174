// From logits to a token, in the order of Hugging Face's generate: repetition penalty -> temperature ->
// top-k -> top-p -> min-p -> draw. Deterministic for a given seed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace stoker {

struct SamplingParams {
  float temperature = 1.0F;  ///< 0: greedy (ties go to the lower id)
  std::uint32_t top_k = 0;   ///< 0: off
  float top_p = 1.0F;
  float min_p = 0.0F;
  float repetition_penalty = 1.0F;
  std::uint64_t seed = 0;
};

struct TokenLogprob {
  std::uint32_t id = 0;
  float logprob = 0;  ///< natural log of softmax of the raw logits (before any sampling transform)
};

class Sampler {
 public:
  /// `token_limit`: ids at or above it are padding rows of lm_head and never drawn (model.md trap 15).
  Sampler(const SamplingParams& params, std::uint32_t token_limit);
  /// Draws the next token. `history`: prompt and generated ids, for the repetition penalty.
  std::uint32_t sample(std::span<const float> logits, std::span<const std::uint32_t> history);

 private:
  SamplingParams params_;
  std::uint32_t token_limit_;
  std::uint64_t state_;
  std::vector<float> scores_;
  std::vector<std::uint32_t> order_;
};

/// Log-probabilities of `chosen` and of the `count` likeliest tokens, from raw logits.
TokenLogprob logprob_of(std::span<const float> logits, std::uint32_t token_limit, std::uint32_t chosen);
std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, std::uint32_t token_limit,
                                       std::uint32_t count);

}  // namespace stoker
