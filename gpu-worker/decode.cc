// The CPU model's step, from top to bottom.
#include "gpu-worker/decode.h"

#include <algorithm>

#include "gpu-worker/cpu/model.h"
#include "gpu-worker/cpu/rope.h"
#include "shm/base/check.h"

namespace stoker {

Result<StepStats> CpuModel::step(std::span<const Segment> segments, Access access, ExpertSource& source,
                                 RoutingObserver* observer, std::span<SegmentResult> results) {
  const Duration start = clock_.now();
  Step step = begin_step(segments, access, source, observer, results, start);
  rows_.lay_out(step, config_.vocab_size);
  grow_sequences(step);
  step.announce(options_.lookahead);
  embed(step);
  STOKER_TRY_VOID(run_layers(step));
  logits(step);
  for (const Segment& segment : segments) {
    static_cast<CpuSequence*>(segment.sequence)
        ->set_length(segment.sequence->length() + static_cast<std::uint32_t>(segment.tokens.size()));
  }
  step.stats.total = clock_.now() - start;
  return step.stats;
}

Result<void> CpuModel::run_layers(Step& step) {
  const std::size_t rows = step.rows.size();
  const std::size_t floats = rows * config_.hidden_size;
  for (std::size_t layer = 0; layer < weights_.layers.size() && step.any_alive(); ++layer) {
    const LayerWeights& w = weights_.layers[layer];
    norm_rows(rows, x_.data(), w.input_norm, h_.data());
    if (w.mixer == MixerType::full_attention) {
      attention(step, layer);
    } else {
      delta_net(step, layer);
    }
    kernels_.add(x_.data(), mix_.data(), floats);
    norm_rows(rows, x_.data(), w.post_norm, h_.data());
    STOKER_TRY_VOID(moe(step, layer));
    kernels_.add(x_.data(), mix_.data(), floats);
  }
  return {};
}

void CpuModel::grow_sequences(Step& step) {
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    auto* sequence = static_cast<CpuSequence*>(step.segments[s].sequence);
    STOKER_CHECK(sequence->model() == this);
    const std::uint64_t length = std::uint64_t{sequence->length()} + step.segments[s].tokens.size();
    if (!sequence->reserve(length)) {
      // No rows without cache: the whole segment leaves the step.
      step.fail(
          static_cast<std::uint32_t>(s),
          Error{Errc::no_memory, 0, "no memory for the KV cache of " + std::to_string(length) + " tokens"});
    }
  }
}

void CpuModel::embed(const Step& step) {
  const std::size_t half = inv_freq_.size();
  for (std::size_t r = 0; r < step.rows.size(); ++r) {
    kernels_.decode_row(weights_.embed, step.rows[r].token, x_.data() + r * config_.hidden_size);
    rope_angles(inv_freq_, step.rows[r].position, rope_.data() + r * 2 * half);
  }
}

/// Final norm and lm_head, for the rows that were asked for only.
void CpuModel::logits(Step& step) {
  const std::size_t hidden = config_.hidden_size;
  const std::size_t vocab = config_.vocab_size;
  std::size_t wanted = 0;
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    const auto [begin, end] = step.logits_rows(s);
    const std::size_t before = wanted;
    for (std::size_t r = begin; r < end; ++r) {
      float* normed = h_.data() + wanted++ * hidden;
      kernels_.rms_norm(x_.data() + r * hidden, weights_.final_norm.data(), hidden, config_.rms_norm_eps,
                        normed);
      if (kernels_.all_finite(normed, hidden)) continue;
      step.fail(static_cast<std::uint32_t>(s), not_finite_error());
      wanted = before;  // its rows leave, or the next segment would get them
      break;
    }
  }
  if (logits_.size() < wanted * vocab) logits_.resize(wanted * vocab);
  matmul(weights_.lm_head, h_.data(), hidden, logits_.data(), vocab, wanted);
  step.hand_out(logits_.data(), vocab);
}

void CpuModel::matmul(const Matrix& w, const float* x, std::size_t x_stride, float* y, std::size_t y_stride,
                      std::size_t rows, const std::uint32_t* scatter) {
  for (std::size_t r = 0; r < rows; ++r) {
    x_rows_[r] = x + r * x_stride;
    y_rows_[r] = y + r * y_stride;
  }
  matmul_rows(w, x_rows_.data(), y_rows_.data(), rows, scatter);
}

void CpuModel::matmul_rows(const Matrix& w, const float* const* x, float* const* y, std::size_t rows,
                           const std::uint32_t* scatter) {
  const MatmulArgs args{w, x, y, static_cast<std::uint32_t>(rows), scatter};
  if (rows == 0) return;
  pool_->run(w.rows, row_grain(w, *pool_), [&](std::size_t begin, std::size_t end, unsigned thread) {
    kernels_.matmul(args, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end),
                    panels_.of(thread));
  });
}

void CpuModel::norm_rows(std::size_t rows, const float* x, const FloatBuffer& w, float* y) {
  const std::size_t hidden = config_.hidden_size;
  pool_->run(rows, 8, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t r = begin; r < end; ++r) {
      kernels_.rms_norm(x + r * hidden, w.data(), hidden, config_.rms_norm_eps, y + r * hidden);
    }
  });
}

std::unique_ptr<Sequence> CpuModel::new_sequence() { return std::make_unique<CpuSequence>(config_, this); }

std::uint64_t CpuModel::sequence_bytes(std::uint64_t length) const {
  return CpuSequence::bytes_for(config_, length);
}

std::uint64_t CpuModel::mark_bytes() const { return CpuSequence::bytes_for(config_, 0); }

std::string CpuModel::describe() const {
  return std::string("cpu, ") + kernels_.name + ", " + std::to_string(pool_->threads()) +
         (pool_->threads() == 1 ? " thread" : " threads");
}

Result<std::unique_ptr<Model>> Model::load_cpu(const ModelConfig& config, const WeightsImage& image,
                                               const CpuOptions& options, const Clock& clock) {
  if (options.step_tokens == 0) return fail(Errc::invalid, "step_tokens must be at least 1");
  STOKER_TRY(const Kernels* kernels, select_kernels(options.simd));
  auto pool = std::make_unique<ThreadPool>(options.threads);
  STOKER_TRY(ModelWeights weights, bind_weights(config, image, *kernels, *pool));
  return std::unique_ptr<Model>(
      std::make_unique<CpuModel>(config, options, clock, *kernels, std::move(pool), std::move(weights)));
}

}  // namespace stoker
