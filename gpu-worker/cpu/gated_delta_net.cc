// The gated DeltaNet mixer (model.md 3.4). The recurrence is used for prefill too: it gives the same bits for
// any chunking, and costs a few percent of the projections.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "gpu-worker/cpu/model.h"
#include "gpu-worker/scalar_math.h"

namespace stoker {
namespace {

constexpr std::size_t kConvGrain = 512;  ///< channels per work item

}  // namespace

void CpuModel::delta_net(const Step& step, std::size_t layer) {
  const DeltaNetWeights& w = weights_.layers[layer].delta;
  const std::size_t proj_stride = dims_.conv_dim + dims_.value_dim;
  const std::size_t side_stride = 2 * config_.linear_value_heads;
  matmul(w.qkvz, h_.data(), config_.hidden_size, proj_.data(), proj_stride, step.rows.size(),
         qkvz_scatter_.data());
  matmul(w.ba, h_.data(), config_.hidden_size, side_.data(), side_stride, step.rows.size(),
         ba_scatter_.data());
  convolve(step, layer);
  delta_rule(step, layer);
  matmul(w.out, core_.data(), dims_.value_dim, mix_.data(), config_.hidden_size, step.rows.size());
}

/// Causal depthwise conv and SiLU over q|k|v of every segment; the last taps-1 inputs become its conv state.
void CpuModel::convolve(const Step& step, std::size_t layer) {
  const DeltaNetWeights& w = weights_.layers[layer].delta;
  const std::size_t channels = dims_.conv_dim;
  const std::size_t proj_stride = dims_.conv_dim + dims_.value_dim;
  const std::size_t history = config_.conv_kernel - 1;
  const std::size_t pieces = (channels + kConvGrain - 1) / kConvGrain;
  pool_->run(step.segments.size() * pieces, 1, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t segment = item / pieces;
      const std::size_t c0 = item % pieces * kConvGrain;
      const std::size_t count = std::min(kConvGrain, channels - c0);
      const std::size_t first = step.first_row[segment];
      const std::size_t tokens = step.first_row[segment + 1] - first;
      float* state = static_cast<CpuSequence*>(step.segments[segment].sequence)->conv(layer) + c0;
      // Input number i counts from the oldest state column; token t's newest input is i = history + t.
      const auto input = [&](std::size_t i) {
        return i < history ? state + i * channels : proj_.data() + (first + i - history) * proj_stride + c0;
      };
      for (std::size_t t = 0; t < tokens; ++t) {
        const float* taps[kConvTapsMax];
        for (std::size_t j = 0; j <= history; ++j) taps[j] = input(t + j);
        kernels_.conv_silu(taps, w.conv.data() + c0, channels, config_.conv_kernel, count,
                           conv_.data() + (first + t) * channels + c0);
      }
      // Ascending, so a short segment's kept columns move down before they are overwritten.
      for (std::size_t i = 0; i < history; ++i) {
        std::memmove(state + i * channels, input(tokens + i), count * sizeof(float));
      }
    }
  });
}

/// l2norm, decay and the recurrence, then the gated norm: one work item is one value head of a segment, so
/// that its state stays in cache over all of the segment's tokens.
void CpuModel::delta_rule(const Step& step, std::size_t layer) {
  const DeltaNetWeights& w = weights_.layers[layer].delta;
  const std::size_t dk = config_.linear_key_dim;
  const std::size_t dv = config_.linear_value_dim;
  const std::size_t key_heads = config_.linear_key_heads;
  const std::size_t value_heads = config_.linear_value_heads;
  const std::size_t proj_stride = dims_.conv_dim + dims_.value_dim;
  const float q_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dk)));
  pool_->run(step.rows.size() * key_heads, 16, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t item = begin; item < end; ++item) {
      float* q = conv_.data() + item / key_heads * dims_.conv_dim + item % key_heads * dk;
      kernels_.l2_norm(q, dk, kL2Eps, q_scale);
      kernels_.l2_norm(q + dims_.key_dim, dk, kL2Eps, 1.0F);
    }
  });
  pool_->run(step.segments.size() * value_heads, 1, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t item = begin; item < end; ++item) {
      const std::size_t segment = item / value_heads;
      const std::size_t head = item % value_heads;
      const std::size_t key_head = head / dims_.v_per_k;
      float* state =
          static_cast<CpuSequence*>(step.segments[segment].sequence)->recurrent(layer) + head * dk * dv;
      for (std::size_t row = step.first_row[segment]; row < step.first_row[segment + 1]; ++row) {
        const float* b = side_.data() + row * 2 * value_heads;
        const float* c = conv_.data() + row * dims_.conv_dim;
        float* o = core_.data() + row * dims_.value_dim + head * dv;
        kernels_.delta_step({state, config_.linear_key_dim, config_.linear_value_dim, c + key_head * dk,
                             c + dims_.key_dim + key_head * dk, c + 2 * dims_.key_dim + head * dv,
                             delta_decay(w.neg_exp_a[head], b[value_heads + head], w.dt_bias[head]),
                             sigmoid_exact(b[head]), o});
        const float* z = proj_.data() + row * proj_stride + dims_.conv_dim + head * dv;
        kernels_.gated_norm(o, z, w.norm.data(), dv, config_.rms_norm_eps, o);
      }
    }
  });
}

}  // namespace stoker
