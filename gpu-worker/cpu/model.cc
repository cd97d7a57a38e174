// Workspace and index tables, made once at load.
#include "gpu-worker/cpu/model.h"

#include <algorithm>

#include "gpu-worker/cpu/rope.h"

namespace stoker {

CpuModel::CpuModel(const ModelConfig& config, const CpuOptions& options, const Clock& clock,
                   const Kernels& kernels, std::unique_ptr<ThreadPool> pool, ModelWeights weights)
    : config_(config),
      dims_(config),
      options_(options),
      clock_(clock),
      kernels_(kernels),
      pool_(std::move(pool)),
      weights_(std::move(weights)),
      qkvz_scatter_(qkvz_columns(config_, dims_)),
      ba_scatter_(ba_columns(config_, dims_)),
      q_scatter_(q_columns(config_, dims_)),
      inv_freq_(inverse_frequencies(config_.rope_theta, config_.rotary_dim)),
      rows_(options_.step_tokens),
      uses_(config_, options_.step_tokens),
      batch_(config_, weights_.expert_dtype, kernels_, *pool_, options_.step_tokens),
      panels_(std::max({config_.hidden_size, config_.moe_intermediate, config_.shared_intermediate,
                        dims_.value_dim, dims_.q_dim}),
              *pool_) {
  const std::size_t n = options_.step_tokens;
  const std::size_t hidden = config_.hidden_size;
  const std::size_t k = config_.experts_per_token;
  x_ = FloatBuffer(n * hidden);
  h_ = FloatBuffer(n * hidden);
  mix_ = FloatBuffer(n * hidden);
  proj_ = FloatBuffer(n * std::max(dims_.conv_dim + dims_.value_dim, 2 * dims_.q_dim));
  side_ = FloatBuffer(n * std::max(2 * config_.linear_value_heads, 2 * dims_.kv_dim));
  conv_ = FloatBuffer(n * dims_.conv_dim);
  core_ = FloatBuffer(n * std::max(dims_.value_dim, dims_.q_dim));
  rope_ = FloatBuffer(n * config_.rotary_dim);
  router_ = FloatBuffer(n * config_.experts);
  ahead_ = FloatBuffer(n * config_.experts);
  topk_weight_ = FloatBuffer(n * k);
  topk_id_.resize(n * k);
  expert_out_ = FloatBuffer(n * k * hidden);
  ready_.reserve(kExpertBatch);
  shared_gate_ = FloatBuffer(n * config_.shared_intermediate);
  shared_up_ = FloatBuffer(n * config_.shared_intermediate);
  shared_out_ = FloatBuffer(n * hidden);
  shared_sigma_ = FloatBuffer(n);
  x_rows_.resize(n);
  y_rows_.resize(n);
  candidates_.resize(config_.experts);
  candidate_scores_.resize(config_.experts);
}

}  // namespace stoker
