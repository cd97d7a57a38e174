// How local the planted routing of a synthetic checkpoint is: embedding row, RMSNorm, router, top-k, and a
// per-layer LRU cache over the walk of routing_tokens.txt. What mixers and experts add to the residual
// stream is left out; synth keeps that small.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <list>
#include <map>
#include <numeric>
#include <span>
#include <unordered_map>
#include <vector>

#include "checkpoint/synth_layout.h"
#include "checkpoint/synth_routing.h"
#include "checkpoint/synth_values.h"

namespace stoker::test {

/// Least recently used, event-atomic (caching.md 6): the experts of one token and layer are looked up
/// together against what was there before any of them, then all are used.
class LruCache {
 public:
  explicit LruCache(std::size_t slots) : slots_(slots) {}
  std::size_t access(std::span<const std::uint32_t> experts) {
    std::size_t hits = 0;
    for (std::uint32_t e : experts) hits += where_.count(e);
    for (std::uint32_t e : experts) {
      if (const auto it = where_.find(e); it != where_.end()) order_.erase(it->second);
      order_.push_front(e);
      where_[e] = order_.begin();
    }
    while (order_.size() > slots_) {
      where_.erase(order_.back());
      order_.pop_back();
    }
    return hits;
  }

 private:
  std::size_t slots_;
  std::list<std::uint32_t> order_;
  std::unordered_map<std::uint32_t, std::list<std::uint32_t>::iterator> where_;
};

struct RoutingRates {
  std::map<std::size_t, double> lru;  ///< slots per layer -> hit rate
  double overlap = 0;                 ///< share of a token's experts that the token before used too
  double top_quarter = 0;             ///< share of accesses that go to the most used quarter of experts
};

class RoutingProbe {
 public:
  RoutingProbe(const SynthSpec& spec, std::uint32_t layer) : spec_(spec), values_(spec), model_(spec) {
    const std::uint64_t hidden = spec.config.hidden_size;
    SynthTensor router;
    router.role = TensorRole::router;
    router.columns = hidden;
    router.info.name = "model.layers." + std::to_string(layer) + ".mlp.gate.weight";
    std::vector<float> rows(spec.config.experts * hidden);
    values_.fill_floats(router, 0, rows);
    columns_.resize(rows.size());  // [hidden][experts]: the loop over experts is the inner one
    for (std::uint64_t e = 0; e < spec.config.experts; ++e)
      for (std::uint64_t j = 0; j < hidden; ++j) columns_[j * spec.config.experts + e] = rows[e * hidden + j];
    SynthTensor norm;
    norm.role = TensorRole::norm;
    norm.columns = hidden;
    norm.info.name = "model.layers." + std::to_string(layer) + ".post_attention_layernorm.weight";
    norm_.resize(hidden);
    values_.fill_floats(norm, 0, norm_);
  }

  std::vector<std::uint32_t> route(std::uint32_t token) const {
    std::vector<float> x(norm_.size());
    model_.embedding(token, 0, x);
    float squares = 0;
    for (float v : x) squares += v * v;
    const float scale = 1.0F / std::sqrt(squares / static_cast<float>(x.size()) + 1e-6F);
    std::vector<float> logits(spec_.config.experts);
    for (std::size_t j = 0; j < x.size(); ++j) {
      const float h = x[j] * scale * (1 + norm_[j]);
      const float* column = columns_.data() + j * logits.size();
      for (std::size_t e = 0; e < logits.size(); ++e) logits[e] += h * column[e];
    }
    std::vector<std::uint32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0U);
    const std::size_t k = spec_.config.experts_per_token;
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                      [&](std::uint32_t a, std::uint32_t b) { return logits[a] > logits[b]; });
    order.resize(k);
    return order;
  }

 private:
  const SynthSpec& spec_;
  SynthValues values_;
  RoutingModel model_;
  std::vector<float> columns_, norm_;
};

/// Over `tokens` steps after as many again of warm-up / 4, mean over `layers` layers.
inline RoutingRates measure_routing(const SynthSpec& spec, std::uint32_t layers, std::uint32_t tokens,
                                    const std::vector<std::size_t>& slots) {
  RoutingRates rates;
  const std::uint32_t warm_up = tokens / 4;
  const std::vector<std::uint32_t> ids = RoutingModel(spec).walk(tokens + warm_up);
  const std::size_t k = spec.config.experts_per_token;
  const double accesses = static_cast<double>(tokens) * static_cast<double>(k) * layers;
  for (std::uint32_t layer = 0; layer < layers; ++layer) {
    const RoutingProbe probe(spec, layer);
    std::vector<LruCache> caches(slots.begin(), slots.end());
    std::vector<std::uint64_t> use(spec.config.experts);
    std::vector<std::uint32_t> last;
    for (std::uint32_t t = 0; t < ids.size(); ++t) {
      const std::vector<std::uint32_t> chosen = probe.route(ids[t]);
      for (std::size_t i = 0; i < slots.size(); ++i) {
        const std::size_t hits = caches[i].access(chosen);
        if (t >= warm_up) rates.lru[slots[i]] += static_cast<double>(hits) / accesses;
      }
      if (t >= warm_up)
        for (std::uint32_t e : chosen) {
          ++use[e];
          if (std::find(last.begin(), last.end(), e) != last.end()) rates.overlap += 1 / accesses;
        }
      last = chosen;
    }
    std::sort(use.rbegin(), use.rend());
    for (std::size_t i = 0; i < use.size() / 4; ++i)
      rates.top_quarter += static_cast<double>(use[i]) / accesses;
  }
  return rates;
}

}  // namespace stoker::test
