// Workspace and index tables, made once at load.
#include "gpu-worker/cpu/model.h"

#include <algorithm>

#include "gpu-worker/cpu/rope.h"

namespace stoker {
namespace {

/// Row of in_proj_qkvz -> column of [q | k | v | z], value and key heads in order (model.md 2.1).
std::vector<std::uint32_t> qkvz_columns(const ModelConfig& c, const Dims& dims) {
  std::vector<std::uint32_t> columns;
  const std::uint32_t values = dims.v_per_k * c.linear_value_dim;
  for (std::uint32_t head = 0; head < c.linear_key_heads; ++head) {
    const auto append = [&](std::uint32_t from, std::uint32_t count) {
      for (std::uint32_t i = 0; i < count; ++i) columns.push_back(from + head * count + i);
    };
    append(0, c.linear_key_dim);
    append(dims.key_dim, c.linear_key_dim);
    append(2 * dims.key_dim, values);
    append(dims.conv_dim, values);
  }
  return columns;
}

/// Row of in_proj_ba -> column of [b | a].
std::vector<std::uint32_t> ba_columns(const ModelConfig& c, const Dims& dims) {
  std::vector<std::uint32_t> columns;
  for (std::uint32_t head = 0; head < c.linear_key_heads; ++head) {
    for (std::uint32_t part = 0; part < 2; ++part) {
      for (std::uint32_t i = 0; i < dims.v_per_k; ++i) {
        columns.push_back(part * c.linear_value_heads + head * dims.v_per_k + i);
      }
    }
  }
  return columns;
}

/// Row of q_proj -> column of [q | gate].
std::vector<std::uint32_t> q_columns(const ModelConfig& c, const Dims& dims) {
  std::vector<std::uint32_t> columns;
  for (std::uint32_t head = 0; head < c.attention_heads; ++head) {
    for (std::uint32_t part = 0; part < 2; ++part) {
      for (std::uint32_t i = 0; i < c.head_dim; ++i)
        columns.push_back(part * dims.q_dim + head * c.head_dim + i);
    }
  }
  return columns;
}

}  // namespace

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
      inv_freq_(inverse_frequencies(config_.rope_theta, config_.rotary_dim)) {
  const std::size_t n = options_.step_tokens;
  const std::size_t hidden = config_.hidden_size;
  const std::size_t k = config_.experts_per_token;
  const std::size_t inner = std::max(config_.moe_intermediate, config_.shared_intermediate);
  rows_.reserve(n);
  first_row_.reserve(n + 1);
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
  uses_.resize(config_.experts);
  use_list_.resize(n * k);
  wanted_.reserve(config_.experts);
  expert_out_ = FloatBuffer(n * k * hidden);
  pairs_max_ = std::max(2 * n, k);  // an expert can have n pairs; twice that makes batches of several
  ready_.reserve(kExpertBatch);
  batch_.reserve(kExpertBatch);
  gate_ = FloatBuffer(pairs_max_ * inner);
  up_ = FloatBuffer(pairs_max_ * inner);
  shared_out_ = FloatBuffer(n * hidden);
  shared_sigma_ = FloatBuffer(n);
  x_rows_.resize(pairs_max_);
  y_rows_.resize(pairs_max_);
  gate_rows_.resize(pairs_max_);
  up_rows_.resize(pairs_max_);
  event_ids_.resize(config_.experts);
  event_chosen_.resize(config_.experts_per_token);
  event_tiers_.resize(config_.experts);
  event_scores_.resize(config_.experts);
  order_.resize(config_.experts);
  const std::size_t widest =
      std::max({hidden, inner, std::size_t{dims_.value_dim}, std::size_t{dims_.q_dim}});
  scratch_stride_ = kPanelRows * widest;
  scratch_ = FloatBuffer(scratch_stride_ * pool_->threads());
}

}  // namespace stoker
