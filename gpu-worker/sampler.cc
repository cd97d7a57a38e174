#include "gpu-worker/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "shm/base/check.h"

namespace stoker {
namespace {

/// SplitMix64 (Steele, Lea, Flood 2014): 53 random bits as a number in [0, 1).
double uniform(std::uint64_t& state) {
  state += 0x9E3779B97F4A7C15ULL;
  std::uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ULL;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBULL;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

std::size_t usable(std::span<const float> logits, std::uint32_t token_limit) {
  const std::size_t n = std::min<std::size_t>(logits.size(), token_limit);
  STOKER_CHECK(n > 0);
  return n;
}

/// log(sum(e^logit)) over the first n, with the largest taken out first.
double log_sum_exp(std::span<const float> logits) {
  const double top = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  double sum = 0;
  for (const float l : logits) sum += std::exp(static_cast<double>(l) - top);
  return top + std::log(sum);
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, std::uint32_t token_limit)
    : params_(params), token_limit_(token_limit), state_(params.seed) {}

std::uint32_t Sampler::sample(std::span<const float> logits, std::span<const std::uint32_t> history) {
  const std::size_t n = usable(logits, token_limit_);
  scores_.assign(logits.begin(), logits.begin() + static_cast<std::ptrdiff_t>(n));
  if (params_.repetition_penalty != 1.0F) {
    // From the raw logit, so that an id that occurs twice is penalised once.
    for (const std::uint32_t id : history) {
      if (id >= n) continue;
      const float l = logits[id];
      scores_[id] = l < 0 ? l * params_.repetition_penalty : l / params_.repetition_penalty;
    }
  }
  if (params_.temperature <= 0) {
    return static_cast<std::uint32_t>(std::max_element(scores_.begin(), scores_.end()) - scores_.begin());
  }
  // From the largest down, so that a tiny temperature cannot overflow.
  const float largest = *std::max_element(scores_.begin(), scores_.end());
  for (float& score : scores_) score = (score - largest) / params_.temperature;

  // A heap of ids, likeliest on top, the lower id first among equals: only as many are sorted as are needed.
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), 0U);
  const auto less = [&](std::uint32_t a, std::uint32_t b) {
    return scores_[a] != scores_[b] ? scores_[a] < scores_[b] : a > b;
  };
  if (params_.top_k > 0 && params_.top_k < n) {
    // As transformers: everything below the k-th score goes, ties with it stay.
    const auto kth = order_.begin() + static_cast<std::ptrdiff_t>(params_.top_k) - 1;
    std::nth_element(order_.begin(), kth, order_.end(), [&](auto a, auto b) { return less(b, a); });
    const float threshold = scores_[*kth];
    std::erase_if(order_, [&](std::uint32_t id) { return scores_[id] < threshold; });
  }
  std::make_heap(order_.begin(), order_.end(), less);
  const double top = static_cast<double>(scores_[order_.front()]);
  double total = 0;
  for (const std::uint32_t id : order_) total += std::exp(static_cast<double>(scores_[id]) - top);

  // Pop in descending order while the nucleus lasts. The kept ids gather at the end of order_, reversed.
  const double nucleus = static_cast<double>(params_.top_p) * total;
  const auto floor = static_cast<double>(params_.min_p);  // relative to the likeliest, whose weight is 1
  const bool filtered = params_.top_p < 1.0F || params_.min_p > 0.0F;
  double draw = uniform(state_);
  if (!filtered) draw *= total;
  double mass = 0;
  auto heap_end = order_.end();
  while (heap_end != order_.begin()) {
    const double weight = std::exp(static_cast<double>(scores_[order_.front()]) - top);
    const bool first = heap_end == order_.end();
    if (!first && ((params_.top_p < 1.0F && mass >= nucleus) || weight < floor)) break;
    mass += weight;
    std::pop_heap(order_.begin(), heap_end, less);
    --heap_end;
    if (!filtered && mass > draw) return *heap_end;
  }
  if (filtered) draw *= mass;
  double sum = 0;
  for (auto it = order_.end(); it != heap_end;) {
    --it;
    sum += std::exp(static_cast<double>(scores_[*it]) - top);
    if (sum > draw) return *it;
  }
  return *heap_end;  // rounding at the very end: the least likely of the kept
}

TokenLogprob logprob_of(std::span<const float> logits, std::uint32_t token_limit, std::uint32_t chosen) {
  const std::span<const float> real = logits.first(usable(logits, token_limit));
  // A forced id may be one of the padding rows that the model has and the tokenizer has not.
  STOKER_CHECK(chosen < logits.size());
  return {chosen, static_cast<float>(static_cast<double>(logits[chosen]) - log_sum_exp(real))};
}

std::vector<TokenLogprob> top_logprobs(std::span<const float> logits, std::uint32_t token_limit,
                                       std::uint32_t count) {
  const std::span<const float> real = logits.first(usable(logits, token_limit));
  std::vector<std::uint32_t> ids(real.size());
  std::iota(ids.begin(), ids.end(), 0U);
  const std::size_t n = std::min<std::size_t>(count, ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(n), ids.end(),
                    [&](auto a, auto b) { return real[a] != real[b] ? real[a] > real[b] : a < b; });
  const double normaliser = log_sum_exp(real);
  std::vector<TokenLogprob> result;
  for (std::size_t i = 0; i < n; ++i) {
    result.push_back({ids[i], static_cast<float>(static_cast<double>(real[ids[i]]) - normaliser)});
  }
  return result;
}

}  // namespace stoker
