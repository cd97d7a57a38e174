// The mixture-of-experts block (model.md 3.7): route all rows, serve each touched expert once for all of its
// rows as it becomes available, then sum each row's outputs in rank order, whatever order they came in.
#include <algorithm>
#include <cstring>

#include "gpu-worker/cpu/model.h"
#include "gpu-worker/scalar_math.h"

namespace stoker {

Result<void> CpuModel::moe(Step& step, std::size_t layer) {
  route(step, layer);
  uses_.collect(step, topk_id_.data(), topk_weight_.data());
  step.timing = {};
  if (!uses_.wanted().empty()) STOKER_TRY_VOID(serve_experts(step, layer));
  sum_experts(step);
  if (step.observer == nullptr) return {};
  if (step.timed) step.timing.done = clock_.now() - step.began;
  uses_.report(step, layer);
  return {};
}

void CpuModel::route(const Step& step, std::size_t layer) {
  const std::size_t experts = config_.experts;
  const std::size_t k = config_.experts_per_token;
  matmul(weights_.layers[layer].moe.router, h_.data(), config_.hidden_size, router_.data(), experts,
         step.rows.size());
  pool_->run(step.rows.size(), 8, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t r = begin; r < end; ++r) {
      if (!step.row_alive(r)) continue;
      float* p = router_.data() + r * experts;
      kernels_.softmax(p, experts);
      float* weights = topk_weight_.data() + r * k;
      choose(p, config_.experts_per_token, topk_id_.data() + r * k, weights);
      if (!config_.norm_topk_prob) continue;
      float sum = 0;
      for (std::size_t i = 0; i < k; ++i) sum += weights[i];
      for (std::size_t i = 0; i < k; ++i) weights[i] /= sum;
    }
  });
}

/// The `count` largest by insertion, largest first; equal values: the lower id first.
void CpuModel::choose(const float* probabilities, std::uint32_t count, std::uint32_t* ids,
                      float* weights) const {
  std::uint32_t held = 0;
  for (std::uint32_t id = 0; id < config_.experts; ++id) {
    const float p = probabilities[id];
    if (held == count && !(p > weights[count - 1])) continue;
    std::uint32_t at = held < count ? held++ : count - 1;
    for (; at > 0 && p > weights[at - 1]; --at) {
      weights[at] = weights[at - 1];
      ids[at] = ids[at - 1];
    }
    weights[at] = p;
    ids[at] = id;
  }
}

/// The next layer's router on this layer's input to the router: a guess that costs one small product.
void CpuModel::look_ahead(const Step& step, std::size_t layer) {
  if (!step.looks_ahead(options_.lookahead) || layer + 1 >= weights_.layers.size()) return;
  const std::size_t experts = config_.experts;
  const std::uint32_t count = std::min(options_.lookahead, config_.experts);
  matmul(weights_.layers[layer + 1].moe.router, h_.data(), config_.hidden_size, ahead_.data(), experts,
         step.rows.size());
  for (std::size_t r = 0; r < step.rows.size(); ++r) {
    if (!step.row_alive(r)) continue;
    float* p = ahead_.data() + r * experts;
    kernels_.softmax(p, experts);
    choose(p, count, candidates_.data(), candidate_scores_.data());
    uses_.report_lookahead(step, layer, r, candidates_.data(), candidate_scores_.data(), count);
  }
}

void CpuModel::shared_expert(const Step& step, std::size_t layer) {
  const std::size_t rows = step.rows.size();
  const MoeWeights& w = weights_.layers[layer].moe;
  const std::size_t hidden = config_.hidden_size;
  const std::size_t inner = config_.shared_intermediate;
  if (inner == 0) return;
  matmul(w.shared_scale, h_.data(), hidden, shared_sigma_.data(), 1, rows);
  matmul(w.shared_gate, h_.data(), hidden, shared_gate_.data(), inner, rows);
  matmul(w.shared_up, h_.data(), hidden, shared_up_.data(), inner, rows);
  pool_->run(rows, 8, [&](std::size_t begin, std::size_t end, unsigned) {
    kernels_.silu_mul(shared_gate_.data() + begin * inner, shared_up_.data() + begin * inner,
                      (end - begin) * inner);
  });
  matmul(w.shared_down, shared_gate_.data(), inner, shared_out_.data(), hidden, rows);
}

/// One event of the source. Demands are out after begin(); the look-ahead and, while reads are pending, the
/// shared expert use the time. Nothing waits while leases are held.
Result<void> CpuModel::serve_experts(Step& step, std::size_t layer) {
  step.source->begin(LayerId(static_cast<std::uint16_t>(layer)), uses_.wanted(), step.access);
  if (step.timed) step.timing.demanded = step.timing.landed = clock_.now() - step.began;
  look_ahead(step, layer);
  bool shared_done = false;
  bool wait = false;
  for (;;) {
    STOKER_TRY(const SourceEvent::Kind after, take_ready(step, wait));
    wait = false;
    if (!ready_.empty()) {
      batch_.run(ready_, uses_, h_.data(), expert_out_.data());
      for (const LeasedExpert& expert : ready_) {
        step.source->release(expert);
        check_outputs(step, layer, expert.expert);
      }
    } else if (after == SourceEvent::Kind::done) {
      break;
    } else if (!shared_done) {
      shared_expert(step, layer);
      shared_done = true;
    } else {
      wait = true;
    }
  }
  if (!shared_done) shared_expert(step, layer);
  return {};
}

/// Fills ready_ with what can be computed now, as much as one batch takes. With `wait`, waits for the first.
/// Returns why it stopped: leased = the batch is full.
Result<SourceEvent::Kind> CpuModel::take_ready(Step& step, bool wait) {
  ready_.clear();
  std::size_t pairs = 0;
  while (batch_.has_room(ready_.size(), pairs)) {
    const Duration before = wait ? clock_.now() : Duration{};
    STOKER_TRY(const SourceEvent event, step.source->next(wait));
    if (wait) step.count_stall(event, before, clock_.now());
    wait = false;
    if (event.kind == SourceEvent::Kind::failed) {
      uses_.fail(step, event.expert, event.error);
    } else if (event.kind == SourceEvent::Kind::leased) {
      uses_.took(step, event.leased.expert, event.leased.tier);
      ready_.push_back(event.leased);
      pairs += uses_.of(event.leased.expert).count;
    } else {
      return event.kind;
    }
  }
  return SourceEvent::Kind::leased;
}

/// A NaN code or an overflow in an expert's weights shows here, once per row, before it can spread.
void CpuModel::check_outputs(Step& step, std::size_t layer, ExpertId expert) {
  const ExpertUse& use = uses_.of(expert);
  const std::size_t hidden = config_.hidden_size;
  for (std::uint32_t i = 0; i < use.count; ++i) {
    const std::uint32_t pair = uses_.pairs()[use.first + i];
    if (!kernels_.all_finite(expert_out_.data() + pair * hidden, hidden)) uses_.not_finite(step, layer, pair);
  }
}

/// mix = sum over ranks of weight * output, then the gated shared expert; always in this order.
void CpuModel::sum_experts(const Step& step) {
  const std::size_t hidden = config_.hidden_size;
  const std::size_t k = config_.experts_per_token;
  pool_->run(step.rows.size(), 8, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t r = begin; r < end; ++r) {
      float* y = mix_.data() + r * hidden;
      std::memset(y, 0, hidden * sizeof(float));
      if (!step.row_alive(r)) continue;
      for (std::size_t i = 0; i < k; ++i) {
        kernels_.axpy(y, topk_weight_[r * k + i], expert_out_.data() + (r * k + i) * hidden, hidden);
      }
      if (config_.shared_intermediate == 0) continue;
      kernels_.axpy(y, sigmoid_exact(shared_sigma_[r]), shared_out_.data() + r * hidden, hidden);
    }
  });
}

}  // namespace stoker
