// The mixture-of-experts block (model.md 3.7): route all rows, serve each touched expert once for all of its
// rows as it becomes available, then sum each row's outputs in rank order, whatever order they came in.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "gpu-worker/cpu/model.h"
#include "shm/base/check.h"

namespace stoker {

namespace {

void count_tier(StepStats& stats, Tier tier) {
  switch (tier) {
    case Tier::vram:
    case Tier::pool:
      ++stats.pool;
      break;
    case Tier::pool_hinted:
      ++stats.hinted;
      break;
    case Tier::disk:
      ++stats.disk;
      break;
    case Tier::disk_late_hint:
      ++stats.late_hint;
      break;
  }
}

}  // namespace

Result<void> CpuModel::moe(Step& step, std::size_t layer) {
  route(step, layer);
  collect_uses(step);
  step.timing = {};
  if (!wanted_.empty()) STOKER_TRY_VOID(serve_experts(step, layer));
  sum_experts(step);
  if (step.observer == nullptr) return {};
  if (step.timed) step.timing.done = clock_.now() - step.began;
  report_routing(step, layer);
  return {};
}

void CpuModel::route(const Step& step, std::size_t layer) {
  const std::size_t experts = config_.experts;
  const std::size_t k = config_.experts_per_token;
  matmul(weights_.layers[layer].moe.router, h_.data(), config_.hidden_size, router_.data(), experts, rows());
  pool_->run(rows(), 8, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t r = begin; r < end; ++r) {
      if (!row_alive(step, r)) continue;
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

/// Groups (row, rank) pairs by expert with a counting sort; rows of failed segments want nothing.
void CpuModel::collect_uses(const Step& step) {
  const std::size_t k = config_.experts_per_token;
  std::fill(uses_.begin(), uses_.end(), ExpertUse{});
  wanted_.clear();
  for (std::size_t r = 0; r < rows(); ++r) {
    if (!row_alive(step, r)) continue;
    for (std::size_t i = 0; i < k; ++i) ++uses_[topk_id_[r * k + i]].count;
  }
  std::uint32_t first = 0;
  for (std::uint32_t e = 0; e < config_.experts; ++e) {
    uses_[e].first = first;
    first += uses_[e].count;
    if (uses_[e].count > 0) wanted_.push_back(ExpertId(static_cast<std::uint16_t>(e)));
    uses_[e].count = 0;
  }
  for (std::size_t r = 0; r < rows(); ++r) {
    if (!row_alive(step, r)) continue;
    for (std::size_t i = 0; i < k; ++i) {
      ExpertUse& use = uses_[topk_id_[r * k + i]];
      use_list_[use.first + use.count++] = static_cast<std::uint32_t>(r * k + i);
    }
  }
}

/// The next layer's router on this layer's input to the router: a guess that costs one small product.
void CpuModel::look_ahead(const Step& step, std::size_t layer) {
  if (step.observer == nullptr || options_.lookahead == 0 || step.access != Access::decode) return;
  if (layer + 1 >= weights_.layers.size()) return;
  const std::size_t experts = config_.experts;
  const std::size_t k = config_.experts_per_token;
  const std::uint32_t count = std::min(options_.lookahead, config_.experts);
  matmul(weights_.layers[layer + 1].moe.router, h_.data(), config_.hidden_size, ahead_.data(), experts,
         rows());
  for (std::size_t r = 0; r < rows(); ++r) {
    if (!row_alive(step, r)) continue;
    float* p = ahead_.data() + r * experts;
    kernels_.softmax(p, experts);
    choose(p, count, order_.data(), event_scores_.data());
    for (std::uint32_t i = 0; i < count; ++i) event_ids_[i] = ExpertId(static_cast<std::uint16_t>(order_[i]));
    for (std::size_t i = 0; i < k; ++i)
      event_chosen_[i] = ExpertId(static_cast<std::uint16_t>(topk_id_[r * k + i]));
    const Segment& segment = step.segments[rows_[r].segment];
    step.observer->on_lookahead({static_cast<std::uint32_t>(layer + 1), segment.sequence_id, rows_[r].token,
                                 std::span(event_chosen_).first(k), std::span(event_ids_).first(count),
                                 std::span(event_scores_).first(count)});
  }
}

void CpuModel::shared_expert(std::size_t layer) {
  const MoeWeights& w = weights_.layers[layer].moe;
  const std::size_t hidden = config_.hidden_size;
  const std::size_t inner = config_.shared_intermediate;
  if (inner == 0) return;
  matmul(w.shared_scale, h_.data(), hidden, shared_sigma_.data(), 1, rows());
  matmul(w.shared_gate, h_.data(), hidden, gate_.data(), inner, rows());
  matmul(w.shared_up, h_.data(), hidden, up_.data(), inner, rows());
  pool_->run(rows(), 8, [&](std::size_t begin, std::size_t end, unsigned) {
    kernels_.silu_mul(gate_.data() + begin * inner, up_.data() + begin * inner, (end - begin) * inner);
  });
  matmul(w.shared_down, gate_.data(), inner, shared_out_.data(), hidden, rows());
}

/// One event of the source. Demands are out after begin(); the look-ahead and, while reads are pending, the
/// shared expert use the time. Nothing waits while leases are held.
Result<void> CpuModel::serve_experts(Step& step, std::size_t layer) {
  step.source->begin(LayerId(static_cast<std::uint16_t>(layer)), wanted_, step.access);
  if (step.timed) step.timing.demanded = step.timing.landed = clock_.now() - step.began;
  look_ahead(step, layer);
  bool shared_done = false;
  bool wait = false;
  for (;;) {
    STOKER_TRY(const SourceEvent::Kind after, take_ready(step, wait));
    wait = false;
    if (!ready_.empty()) {
      run_experts();
      for (const LeasedExpert& expert : ready_) {
        step.source->release(expert);
        check_outputs(step, layer, expert.expert);
      }
    } else if (after == SourceEvent::Kind::done) {
      break;
    } else if (!shared_done) {
      shared_expert(layer);
      shared_done = true;
    } else {
      wait = true;
    }
  }
  if (!shared_done) shared_expert(layer);
  return {};
}

/// The wait that began at `before` ended with `event`.
void CpuModel::count_stall(Step& step, const SourceEvent& event, Duration before) const {
  const Duration now = clock_.now();
  step.stats.stall += now - before;
  if (event.kind == SourceEvent::Kind::leased && event.leased.tier == Tier::disk_late_hint)
    step.stats.stall_late_hint += now - before;
  step.timing.stalled += now - before;
  step.timing.landed = now - step.began;
}

/// Fills ready_ with what can be computed now, as much as one batch takes. With `wait`, waits for the first.
/// Returns why it stopped: leased = the batch is full.
Result<SourceEvent::Kind> CpuModel::take_ready(Step& step, bool wait) {
  ready_.clear();
  std::size_t pairs = 0;
  while (ready_.size() < kExpertBatch && pairs + rows() <= pairs_max_) {
    const Duration before = wait ? clock_.now() : Duration{};
    STOKER_TRY(const SourceEvent event, step.source->next(wait));
    if (wait) count_stall(step, event, before);
    wait = false;
    if (event.kind == SourceEvent::Kind::failed) {
      fail_expert(step, event.expert, event.error);
    } else if (event.kind == SourceEvent::Kind::leased) {
      ExpertUse& use = uses_[event.leased.expert.value];
      use.tier = event.leased.tier;
      count_tier(step.stats, event.leased.tier);
      ready_.push_back(event.leased);
      pairs += use.count;
    } else {
      return event.kind;
    }
  }
  return SourceEvent::Kind::leased;
}

/// The three matrices of an expert where they lie.
CpuModel::ExpertMatrices CpuModel::matrices_of(const LeasedExpert& expert) const {
  const std::uint32_t hidden = config_.hidden_size;
  const std::uint32_t inner = config_.moe_intermediate;
  const DType dtype = weights_.expert_dtype;
  const std::uint32_t br = config_.scale_block_rows;
  const std::uint32_t bc = config_.scale_block_cols;
  ExpertMatrices m{{expert.gate, dtype, inner, hidden, expert.scales, br, bc},
                   {expert.up, dtype, inner, hidden, nullptr, br, bc},
                   {expert.down, dtype, hidden, inner, nullptr, br, bc}};
  if (dtype == DType::f8_e4m3) {
    STOKER_CHECK(expert.scales != nullptr);
    const std::size_t tiles = std::size_t{(inner + br - 1) / br} * m.gate.scale_cols();
    m.up.scales = expert.scales + tiles;
    m.down.scales = expert.scales + 2 * tiles;
  }
  return m;
}

/// body(expert, first row, end row, thread) over `rows` rows of every expert of batch_, at most `grain` at
/// once.
template <class Body>
void CpuModel::for_rows_of_batch(std::uint32_t rows, std::size_t grain, const Body& body) {
  const std::size_t pieces = (rows + grain - 1) / grain;
  pool_->run(batch_.size() * pieces, 1, [&](std::size_t begin, std::size_t end, unsigned thread) {
    for (std::size_t item = begin; item < end; ++item) {
      const auto first = static_cast<std::uint32_t>(item % pieces * grain);
      body(batch_[item / pieces], first, std::min(rows, first + static_cast<std::uint32_t>(grain)), thread);
    }
  });
}

/// down(silu(gate x) * (up x)) for every row that chose an expert of ready_, straight from the slots. Two
/// loops over all of them: threads meet twice a batch, not twice an expert.
void CpuModel::run_experts() {
  const std::uint32_t hidden = config_.hidden_size;
  const std::uint32_t inner = config_.moe_intermediate;
  batch_.clear();
  std::uint32_t at = 0;
  for (const LeasedExpert& expert : ready_) {
    const ExpertUse& use = uses_[expert.expert.value];
    batch_.push_back({matrices_of(expert), at, use.count});
    for (std::uint32_t i = 0; i < use.count; ++i, ++at) {
      const std::size_t pair = use_list_[use.first + i];
      x_rows_[at] = h_.data() + pair / config_.experts_per_token * hidden;
      gate_rows_[at] = gate_.data() + std::size_t{at} * inner;
      up_rows_[at] = up_.data() + std::size_t{at} * inner;
      y_rows_[at] = expert_out_.data() + pair * hidden;
    }
  }
  const Matrix& gate = batch_.front().matrices.gate;
  for_rows_of_batch(inner, row_grain(gate),
                    [&](const BatchedExpert& e, std::uint32_t begin, std::uint32_t end, unsigned thread) {
                      const MatmulArgs g{e.matrices.gate, x_rows_.data() + e.first,
                                         gate_rows_.data() + e.first, e.count, nullptr};
                      const MatmulArgs u{e.matrices.up, x_rows_.data() + e.first, up_rows_.data() + e.first,
                                         e.count, nullptr};
                      kernels_.matmul(g, begin, end, scratch(thread));
                      kernels_.matmul(u, begin, end, scratch(thread));
                      for (std::uint32_t i = e.first; i < e.first + e.count; ++i)
                        kernels_.silu_mul(gate_rows_[i] + begin, up_rows_[i] + begin, end - begin);
                    });
  const Matrix& down = batch_.front().matrices.down;
  for_rows_of_batch(hidden, row_grain(down),
                    [&](const BatchedExpert& e, std::uint32_t begin, std::uint32_t end, unsigned thread) {
                      const MatmulArgs d{e.matrices.down, gate_rows_.data() + e.first,
                                         y_rows_.data() + e.first, e.count, nullptr};
                      kernels_.matmul(d, begin, end, scratch(thread));
                    });
}

/// A NaN code or an overflow in an expert's weights shows here, once per row, before it can spread.
void CpuModel::check_outputs(Step& step, std::size_t layer, ExpertId expert) {
  const ExpertUse& use = uses_[expert.value];
  const std::size_t hidden = config_.hidden_size;
  for (std::uint32_t i = 0; i < use.count; ++i) {
    const std::uint32_t pair = use_list_[use.first + i];
    if (kernels_.all_finite(expert_out_.data() + pair * hidden, hidden)) continue;
    fail_segment(step, rows_[pair / config_.experts_per_token].segment,
                 Error{Errc::corrupt, 0,
                       "expert " + std::to_string(expert.value) + " of layer " + std::to_string(layer) +
                           " produced non-finite values: checkpoint damaged, run `stoker verify`"});
  }
}

void CpuModel::fail_expert(Step& step, ExpertId expert, const Error& error) {
  ExpertUse& use = uses_[expert.value];
  use.failed = true;
  use.tier = Tier::disk;
  for (std::uint32_t i = 0; i < use.count; ++i) {
    fail_segment(step, rows_[use_list_[use.first + i] / config_.experts_per_token].segment, error);
  }
}

/// mix = sum over ranks of weight * output, then the gated shared expert; always in this order.
void CpuModel::sum_experts(const Step& step) {
  const std::size_t hidden = config_.hidden_size;
  const std::size_t k = config_.experts_per_token;
  pool_->run(rows(), 8, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t r = begin; r < end; ++r) {
      float* y = mix_.data() + r * hidden;
      std::memset(y, 0, hidden * sizeof(float));
      if (!row_alive(step, r)) continue;
      for (std::size_t i = 0; i < k; ++i) {
        kernels_.axpy(y, topk_weight_[r * k + i], expert_out_.data() + (r * k + i) * hidden, hidden);
      }
      if (config_.shared_intermediate == 0) continue;
      const double s = 1.0 / (1.0 + std::exp(-static_cast<double>(shared_sigma_[r])));
      kernels_.axpy(y, static_cast<float>(s), shared_out_.data() + r * hidden, hidden);
    }
  });
}

void CpuModel::report_routing(const Step& step, std::size_t layer) {
  const std::size_t k = config_.experts_per_token;
  for (std::size_t r = 0; r < rows(); ++r) {
    if (!row_alive(step, r)) continue;
    for (std::size_t i = 0; i < k; ++i) {
      const std::uint32_t id = topk_id_[r * k + i];
      event_ids_[i] = ExpertId(static_cast<std::uint16_t>(id));
      event_tiers_[i] = uses_[id].tier;
    }
    const Row& row = rows_[r];
    step.observer->on_routing({static_cast<std::uint32_t>(layer), step.segments[row.segment].sequence_id,
                               row.token, row.position, step.access, std::span(event_ids_).first(k),
                               std::span<const float>(topk_weight_.data() + r * k, k),
                               std::span(event_tiers_).first(k), step.timing});
  }
}

}  // namespace stoker
