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
  Step step{.segments = segments,
            .results = results,
            .access = access,
            .source = &source,
            .observer = observer,
            .timed = observer != nullptr && observer->wants_timing(),
            .began = start,
            .timing = {},
            .stats = {}};
  lay_out_rows(step);
  grow_sequences(step);
  announce(step);
  embed();
  STOKER_TRY_VOID(run_layers(step));
  logits(step);
  for (std::size_t s = 0; s < segments.size(); ++s) {
    static_cast<CpuSequence*>(segments[s].sequence)
        ->set_length(segments[s].sequence->length() + static_cast<std::uint32_t>(segments[s].tokens.size()));
  }
  step.stats.total = clock_.now() - start;
  return step.stats;
}

Result<void> CpuModel::run_layers(Step& step) {
  for (std::size_t layer = 0; layer < weights_.layers.size() && any_alive(step); ++layer) {
    const LayerWeights& w = weights_.layers[layer];
    norm_rows(x_.data(), w.input_norm, h_.data());
    if (w.mixer == MixerType::full_attention) {
      attention(step, layer);
    } else {
      delta_net(step, layer);
    }
    add_rows(x_.data(), mix_.data());
    norm_rows(x_.data(), w.post_norm, h_.data());
    STOKER_TRY_VOID(moe(step, layer));
    add_rows(x_.data(), mix_.data());
  }
  return {};
}

void CpuModel::lay_out_rows(Step& step) {
  STOKER_CHECK(step.segments.size() == step.results.size());
  rows_.clear();
  first_row_.clear();
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    const Segment& segment = step.segments[s];
    const auto* sequence = static_cast<const CpuSequence*>(segment.sequence);
    STOKER_CHECK(sequence != nullptr && sequence->model() == this);
    STOKER_CHECK(!segment.tokens.empty());
    STOKER_CHECK(rows_.size() + segment.tokens.size() <= options_.step_tokens);
    step.results[s] = SegmentResult{};
    first_row_.push_back(static_cast<std::uint32_t>(rows_.size()));
    std::uint32_t position = sequence->length();
    for (const std::uint32_t token : segment.tokens) {
      STOKER_CHECK(token < config_.vocab_size);
      rows_.push_back({static_cast<std::uint32_t>(s), token, position++});
    }
  }
  first_row_.push_back(static_cast<std::uint32_t>(rows_.size()));
}

void CpuModel::grow_sequences(Step& step) {
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    auto* sequence = static_cast<CpuSequence*>(step.segments[s].sequence);
    const std::uint64_t length = std::uint64_t{sequence->length()} + step.segments[s].tokens.size();
    if (!sequence->reserve(length)) {
      // No rows without cache: the whole segment leaves the step.
      fail_segment(
          step, static_cast<std::uint32_t>(s),
          Error{Errc::no_memory, 0, "no memory for the KV cache of " + std::to_string(length) + " tokens"});
    }
  }
}

/// The earliest moment at which somebody could guess what the step will want.
void CpuModel::announce(const Step& step) const {
  if (step.observer == nullptr || options_.lookahead == 0 || step.access != Access::decode) return;
  for (const Row& row : rows_) step.observer->on_token(step.segments[row.segment].sequence_id, row.token);
}

void CpuModel::embed() {
  const std::size_t half = inv_freq_.size();
  for (std::size_t r = 0; r < rows(); ++r) {
    kernels_.decode_row(weights_.embed, rows_[r].token, x_.data() + r * config_.hidden_size);
    rope_angles(inv_freq_, rows_[r].position, rope_.data() + r * 2 * half);
  }
}

/// Final norm and lm_head, for the rows that were asked for only.
void CpuModel::logits(Step& step) {
  const std::size_t hidden = config_.hidden_size;
  const std::size_t vocab = config_.vocab_size;
  std::size_t wanted = 0;
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    if (step.results[s].error) continue;
    std::size_t first = first_row_[s + 1];
    if (step.segments[s].logits == Segment::Logits::last) first -= 1;
    if (step.segments[s].logits == Segment::Logits::all) first = first_row_[s];
    const std::size_t before = wanted;
    for (std::size_t r = first; r < first_row_[s + 1]; ++r) {
      float* normed = h_.data() + wanted++ * hidden;
      kernels_.rms_norm(x_.data() + r * hidden, weights_.final_norm.data(), hidden, config_.rms_norm_eps,
                        normed);
      if (kernels_.all_finite(normed, hidden)) continue;
      fail_segment(step, static_cast<std::uint32_t>(s),
                   Error{Errc::corrupt, 0,
                         "the model produced non-finite values: checkpoint damaged, run `stoker verify`"});
      wanted = before;  // its rows leave, or the next segment would get them
      break;
    }
  }
  if (logits_.size() < wanted * vocab) logits_.resize(wanted * vocab);
  matmul(weights_.lm_head, h_.data(), hidden, logits_.data(), vocab, wanted);
  std::size_t at = 0;
  for (std::size_t s = 0; s < step.segments.size(); ++s) {
    const Segment& segment = step.segments[s];
    if (step.results[s].error || segment.logits == Segment::Logits::none) continue;
    const std::size_t count = segment.logits == Segment::Logits::all ? segment.tokens.size() : 1;
    step.results[s].logits = {logits_.data() + at * vocab, count * vocab};
    at += count;
  }
}

void CpuModel::fail_segment(Step& step, std::uint32_t segment, Error error) {
  if (!step.results[segment].error) step.results[segment].error = std::move(error);
}

bool CpuModel::row_alive(const Step& step, std::size_t row) const {
  return !step.results[rows_[row].segment].error;
}

bool CpuModel::any_alive(const Step& step) const {
  return std::any_of(step.results.begin(), step.results.end(),
                     [](const SegmentResult& r) { return !r.error; });
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
  pool_->run(w.rows, row_grain(w), [&](std::size_t begin, std::size_t end, unsigned thread) {
    kernels_.matmul(args, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(end),
                    scratch(thread));
  });
}

/// Rows of W per work item: about eight items per thread, none below 32 KiB of weights, whole panels.
std::size_t CpuModel::row_grain(const Matrix& w) const {
  const std::size_t row_bytes = std::max<std::size_t>(1, w.bytes() / std::max(1U, w.rows));
  const std::size_t least = (32768 + row_bytes - 1) / row_bytes;
  const std::size_t fair = w.rows / (pool_->threads() * 8) + 1;
  return (std::max(least, fair) + kPanelRows - 1) / kPanelRows * kPanelRows;
}

void CpuModel::norm_rows(const float* x, const FloatBuffer& w, float* y) {
  const std::size_t hidden = config_.hidden_size;
  pool_->run(rows(), 8, [&](std::size_t begin, std::size_t end, unsigned) {
    for (std::size_t r = begin; r < end; ++r) {
      kernels_.rms_norm(x + r * hidden, w.data(), hidden, config_.rms_norm_eps, y + r * hidden);
    }
  });
}

void CpuModel::add_rows(float* x, const float* y) { kernels_.add(x, y, rows() * config_.hidden_size); }

std::unique_ptr<Sequence> CpuModel::new_sequence() { return std::make_unique<CpuSequence>(config_, this); }

std::uint64_t CpuModel::sequence_bytes(std::uint64_t length) const {
  return CpuSequence::bytes_for(config_, length);
}

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
