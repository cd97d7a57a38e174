// Gated full attention (model.md 3.6) over an fp32 KV cache.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "gpu-worker/cpu/model.h"
#include "gpu-worker/cpu/rope.h"

namespace stoker {
void CpuModel::attention(const Step& step, std::size_t layer) {
  const AttentionWeights& w = weights_.layers[layer].attention;
  const std::size_t hidden = config_.hidden_size;
  const std::size_t side_stride = 2 * dims_.kv_dim;
  matmul(w.q, h_.data(), hidden, proj_.data(), 2 * dims_.q_dim, step.rows.size(), q_scatter_.data());
  matmul(w.k, h_.data(), hidden, side_.data(), side_stride, step.rows.size());
  matmul(w.v, h_.data(), hidden, side_.data() + dims_.kv_dim, side_stride, step.rows.size());
  store_keys_values(step, layer);
  attend(step, layer);
  matmul(w.o, core_.data(), dims_.q_dim, mix_.data(), hidden, step.rows.size());
}

/// Norm and RoPE of q (in place) and k; k and v go to the cache.
void CpuModel::store_keys_values(const Step& step, std::size_t layer) {
  const AttentionWeights& w = weights_.layers[layer].attention;
  const std::size_t dim = config_.head_dim;
  const std::size_t half = config_.rotary_dim / 2;
  pool_->run(step.rows.size(), 1, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t r = begin; r < end; ++r) {
      if (!step.row_alive(r)) continue;  // perhaps for want of memory for its cache
      const float* cos_sin = rope_.data() + r * 2 * half;
      for (std::uint32_t head = 0; head < config_.attention_heads; ++head) {
        float* q = proj_.data() + r * 2 * dims_.q_dim + head * dim;
        kernels_.rms_norm(q, w.q_norm.data(), dim, config_.rms_norm_eps, q);
        rotate(q, cos_sin, half);
      }
      const Row& row = step.rows[r];
      auto* sequence = static_cast<CpuSequence*>(step.segments[row.segment].sequence);
      const std::uint32_t block = row.position / kKvBlock;
      const std::size_t at = row.position % kKvBlock * dim;
      for (std::uint32_t head = 0; head < config_.kv_heads; ++head) {
        const float* k = side_.data() + r * 2 * dims_.kv_dim + head * dim;
        float* key = sequence->keys(layer, block, head) + at;
        kernels_.rms_norm(k, w.k_norm.data(), dim, config_.rms_norm_eps, key);
        rotate(key, cos_sin, half);
        std::memcpy(sequence->values(layer, block, head) + at, k + dims_.kv_dim, dim * sizeof(float));
      }
    }
  });
}

/// Work items are (row, kv head) with all its query heads; single query heads when there are few rows.
void CpuModel::attend(const Step& step, std::size_t layer) {
  const bool split_heads = step.rows.size() * config_.kv_heads < pool_->threads();
  const std::uint32_t heads = split_heads ? 1 : dims_.q_per_kv;
  const std::size_t items = config_.attention_heads / heads;
  std::size_t longest = 0;
  for (const Row& row : step.rows) longest = std::max<std::size_t>(longest, row.position + 1);
  longest = (longest + kKvBlock - 1) / kKvBlock * kKvBlock;
  scores_stride_ = longest * dims_.q_per_kv + config_.head_dim;
  if (scores_.size() < scores_stride_ * pool_->threads()) scores_.resize(scores_stride_ * pool_->threads());
  pool_->run(step.rows.size() * items, 1, [&](std::size_t begin, std::size_t end, unsigned thread) {
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t r = item / items;
      if (!step.row_alive(r)) continue;
      const auto& sequence = *static_cast<const CpuSequence*>(step.segments[step.rows[r].segment].sequence);
      attend_row(sequence, layer, step.rows[r], r, static_cast<std::uint32_t>(item % items) * heads, heads,
                 scores_.data() + thread * scores_stride_);
    }
  });
}

/// `heads` query heads that share one kv head. Keys and values are walked in order of position, so the
/// arithmetic depends on the position only, not on how the sequence was cut into steps. Sums are per block of
/// the cache, then over the blocks in order: a GPU can compute the blocks side by side and get the same bits.
void CpuModel::attend_row(const CpuSequence& sequence, std::size_t layer, const Row& at, std::size_t row,
                          std::uint32_t first_head, std::uint32_t heads, float* scores) {
  const std::uint32_t length = at.position + 1;
  const std::uint32_t blocks = (length + kKvBlock - 1) / kKvBlock;
  const std::uint32_t kv_head = first_head / dims_.q_per_kv;
  const std::uint32_t dim = config_.head_dim;
  const std::size_t stride = std::size_t{blocks} * kKvBlock;
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  const float* q = proj_.data() + row * 2 * dims_.q_dim + std::size_t{first_head} * dim;
  float* out = core_.data() + row * dims_.q_dim + std::size_t{first_head} * dim;
  float* block_sum = scores + heads * stride;
  const auto in_block = [&](std::uint32_t b) { return std::min(kKvBlock, length - b * kKvBlock); };
  for (std::uint32_t b = 0; b < blocks; ++b) {
    kernels_.attention_scores(q, heads, sequence.keys(layer, b, kv_head), in_block(b), dim, scale,
                              scores + std::size_t{b} * kKvBlock, stride);
  }
  std::memset(out, 0, std::size_t{heads} * dim * sizeof(float));
  for (std::uint32_t g = 0; g < heads; ++g, scores += stride, out += dim) {
    const float top = kernels_.largest(scores, length);
    float total = 0;
    for (std::uint32_t b = 0; b < blocks; ++b) {
      float* block = scores + std::size_t{b} * kKvBlock;
      total += kernels_.exp_sum(block, in_block(b), top);
      std::memset(block_sum, 0, dim * sizeof(float));
      kernels_.attention_values(block, stride, 1, sequence.values(layer, b, kv_head), in_block(b), dim,
                                block_sum);
      kernels_.add(out, block_sum, dim);
    }
    kernels_.attention_finish(out, total, q + dims_.q_dim + std::size_t{g} * dim, dim);
  }
}

}  // namespace stoker
