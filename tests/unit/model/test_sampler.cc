#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "gpu-worker/sampler.h"

namespace stoker::testing {
namespace {

/// The distribution by transformers' processors, written naively: -inf masks and a softmax after each step.
std::vector<double> reference(const std::vector<float>& logits, const SamplingParams& p, std::uint32_t limit,
                              const std::vector<std::uint32_t>& history) {
  const double none = -std::numeric_limits<double>::infinity();
  std::vector<double> s(logits.begin(), logits.begin() + limit);
  for (std::uint32_t id = 0; id < limit; ++id) {
    if (std::count(history.begin(), history.end(), id) == 0) continue;
    s[id] = static_cast<double>(logits[id] < 0 ? logits[id] * p.repetition_penalty
                                               : logits[id] / p.repetition_penalty);
  }
  for (double& x : s) x = static_cast<double>(static_cast<float>(x) / p.temperature);
  const auto softmax = [&] {
    const double top = *std::max_element(s.begin(), s.end());
    std::vector<double> w(s.size());
    double sum = 0;
    for (std::size_t i = 0; i < s.size(); ++i) sum += w[i] = std::exp(s[i] - top);
    for (double& x : w) x /= sum;
    return w;
  };
  if (p.top_k > 0 && p.top_k < limit) {
    std::vector<double> sorted = s;
    std::sort(sorted.rbegin(), sorted.rend());
    for (double& x : s) x = x < sorted[p.top_k - 1] ? none : x;
  }
  if (p.top_p < 1) {
    const std::vector<double> w = softmax();
    std::vector<std::size_t> order(s.size());
    std::iota(order.begin(), order.end(), 0U);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return w[a] > w[b]; });
    double before = 0;
    for (std::size_t i = 0; i < order.size(); ++i) {
      const double mass = w[order[i]];
      if (i > 0 && before >= static_cast<double>(p.top_p)) s[order[i]] = none;
      before += mass;
    }
  }
  if (p.min_p > 0) {
    const std::vector<double> w = softmax();
    const double top = *std::max_element(w.begin(), w.end());
    for (std::size_t i = 0; i < s.size(); ++i) s[i] = w[i] < static_cast<double>(p.min_p) * top ? none : s[i];
  }
  return softmax();
}

}  // namespace

TEST_CASE("greedy: the largest, the lower id among equals, never a padding id") {
  Sampler sampler({.temperature = 0}, 4);
  CHECK(sampler.sample(std::vector<float>{1, 3, 3, 2, 99, 98}, {}) == 1);
  Sampler penal({.temperature = 0, .repetition_penalty = 2}, 4);
  CHECK(penal.sample(std::vector<float>{1, 3, 2, 0, 99, 98}, std::vector<std::uint32_t>{1, 1, 5}) == 2);
  CHECK(penal.sample(std::vector<float>{-1, -2, -3, -3, 9, 9}, std::vector<std::uint32_t>{0}) == 0);
}

TEST_CASE("draws follow the reference distribution and never leave its support") {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  const std::uint32_t limit = 40;
  std::vector<float> logits(48);
  const std::vector<std::uint32_t> history = {3, 7, 7, 12};
  const std::vector<SamplingParams> cases = {
      {},
      {.temperature = 0.7F},
      {.top_k = 5},
      {.temperature = 1.3F, .top_p = 0.8F},
      {.min_p = 0.1F},
      {.temperature = 0.8F, .top_k = 12, .top_p = 0.9F, .min_p = 0.05F, .repetition_penalty = 1.3F},
      {.top_p = 0.0F},
      {.top_k = 1},
  };
  for (std::size_t c = 0; c < cases.size(); ++c) {
    for (float& l : logits) l = normal(random);
    SamplingParams params = cases[c];
    params.seed = c + 1;
    const std::vector<double> want = reference(logits, params, limit, history);
    Sampler sampler(params, limit);
    constexpr int kDraws = 20000;
    std::vector<int> counts(limit);
    for (int i = 0; i < kDraws; ++i) ++counts[sampler.sample(logits, history)];
    INFO("case " << c);
    // Five standard deviations of a binomial: a wrong filter is off by whole tokens, chance is not.
    for (std::uint32_t id = 0; id < limit; ++id) {
      INFO("id " << id << " p " << want[id] << " count " << counts[id]);
      if (want[id] == 0) {
        CHECK(counts[id] == 0);
      } else {
        const double slack = 5 * std::sqrt(kDraws * want[id] * (1 - want[id])) + 1;
        CHECK(std::fabs(counts[id] - kDraws * want[id]) <= slack);
      }
    }
  }
}

TEST_CASE("the smallest temperature is greedy, not an overflow") {
  const std::vector<float> logits = {-3, 30, 29.9F, -40};
  SamplingParams params;
  params.temperature = 1e-38F;
  Sampler sampler(params, 4);
  for (int i = 0; i < 20; ++i) CHECK(sampler.sample(logits, {}) == 1);
}

TEST_CASE("ties at the k-th score stay, as in transformers") {
  const std::vector<float> logits = {2, 1, 1, 0};
  Sampler sampler({.top_k = 2, .seed = 9}, 4);
  std::vector<int> counts(4);
  for (int i = 0; i < 2000; ++i) ++counts[sampler.sample(logits, {})];
  CHECK(counts[1] > 0);
  CHECK(counts[2] > 0);
  CHECK(counts[3] == 0);
}

TEST_CASE("the same seed draws the same tokens, another seed others") {
  const std::vector<float> logits(100, 0.5F);
  Sampler a({.seed = 1}, 100), b({.seed = 1}, 100), c({.seed = 2}, 100);
  std::vector<std::uint32_t> xa, xb, xc;
  for (int i = 0; i < 50; ++i) {
    xa.push_back(a.sample(logits, {}));
    xb.push_back(b.sample(logits, {}));
    xc.push_back(c.sample(logits, {}));
  }
  CHECK(xa == xb);
  CHECK(xa != xc);
}

TEST_CASE("log-probabilities of raw logits, without padding ids") {
  const std::vector<float> logits = {1, 2, 3, 2, 50};
  const double z = std::log(std::exp(1.0) + 2 * std::exp(2.0) + std::exp(3.0));
  CHECK(logprob_of(logits, 4, 2).logprob == Approx(3 - z));
  CHECK(logprob_of(logits, 4, 4).logprob == Approx(50 - z));  // forced: a padding id
  const auto top = top_logprobs(logits, 4, 3);
  REQUIRE(top.size() == 3);
  CHECK(top[0].id == 2);
  CHECK(top[1].id == 1);
  CHECK(top[2].id == 3);
  CHECK(top[1].logprob == Approx(2 - z));
  CHECK(top_logprobs(logits, 4, 9).size() == 4);
}

}  // namespace stoker::testing
