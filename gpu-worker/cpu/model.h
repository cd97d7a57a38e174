// The CPU model: weights bound to the resident image, workspace, and the layers as member functions.
// decode.cc has the step from top to bottom; each mixer and the MoE block has a file of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/cpu/expert_batch.h"
#include "gpu-worker/cpu/kernels.h"
#include "gpu-worker/cpu/sequence.h"
#include "gpu-worker/cpu/thread_pool.h"
#include "gpu-worker/cpu/weights.h"
#include "gpu-worker/decode.h"
#include "gpu-worker/expert_uses.h"
#include "gpu-worker/step.h"

namespace stoker {

class CpuModel final : public Model {
 public:
  CpuModel(const ModelConfig& config, const CpuOptions& options, const Clock& clock, const Kernels& kernels,
           std::unique_ptr<ThreadPool> pool, ModelWeights weights);

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] std::unique_ptr<Sequence> new_sequence() override;
  [[nodiscard]] std::uint64_t sequence_bytes(std::uint64_t length) const override;
  [[nodiscard]] std::uint64_t mark_bytes() const override;
  [[nodiscard]] std::uint32_t step_tokens_max() const override { return options_.step_tokens; }
  Result<StepStats> step(std::span<const Segment> segments, Access access, ExpertSource& source,
                         RoutingObserver* observer, std::span<SegmentResult> results) override;
  [[nodiscard]] std::string describe() const override;

 private:
  // decode.cc
  void grow_sequences(Step& step);
  void embed(const Step& step);
  Result<void> run_layers(Step& step);
  void logits(Step& step);

  // Helpers over all rows; x/y rows are `*_stride` floats apart.
  void matmul(const Matrix& w, const float* x, std::size_t x_stride, float* y, std::size_t y_stride,
              std::size_t rows, const std::uint32_t* scatter = nullptr);
  void matmul_rows(const Matrix& w, const float* const* x, float* const* y, std::size_t rows,
                   const std::uint32_t* scatter = nullptr);
  void norm_rows(std::size_t rows, const float* x, const FloatBuffer& w, float* y);

  // gated_delta_net.cc
  void delta_net(const Step& step, std::size_t layer);
  void convolve(const Step& step, std::size_t layer);
  void delta_rule(const Step& step, std::size_t layer);

  // gated_attention.cc
  void attention(const Step& step, std::size_t layer);
  void store_keys_values(const Step& step, std::size_t layer);
  void attend(const Step& step, std::size_t layer);
  void attend_row(const CpuSequence& sequence, std::size_t layer, const Row& at, std::size_t row,
                  std::uint32_t first_head, std::uint32_t heads, float* scores);

  // moe.cc
  Result<void> moe(Step& step, std::size_t layer);
  void route(const Step& step, std::size_t layer);
  void choose(const float* probabilities, std::uint32_t count, std::uint32_t* ids, float* weights) const;
  void look_ahead(const Step& step, std::size_t layer);
  void shared_expert(const Step& step, std::size_t layer);
  Result<void> serve_experts(Step& step, std::size_t layer);
  Result<SourceEvent::Kind> take_ready(Step& step, bool wait);
  void check_outputs(Step& step, std::size_t layer, ExpertId expert);
  void sum_experts(const Step& step);

  ModelConfig config_;
  Dims dims_;
  CpuOptions options_;
  const Clock& clock_;
  const Kernels& kernels_;
  std::unique_ptr<ThreadPool> pool_;
  ModelWeights weights_;

  std::vector<std::uint32_t> qkvz_scatter_, ba_scatter_, q_scatter_;
  std::vector<float> inv_freq_;

  // Workspace, sized for step_tokens rows. Shapes are [row][...].
  RowTable rows_;
  FloatBuffer x_, h_, mix_;  ///< residual, normalised input, block output: [hidden]
  FloatBuffer proj_;         ///< DeltaNet q|k|v|z, or attention q|gate
  FloatBuffer side_;         ///< DeltaNet b|a, or attention k|v
  FloatBuffer conv_;         ///< DeltaNet after conv: q|k|v
  FloatBuffer core_;         ///< mixer output before its output projection
  FloatBuffer rope_;         ///< cos | sin of the row's position
  FloatBuffer router_;       ///< probabilities, [experts]
  FloatBuffer ahead_;        ///< the next layer's, for look-ahead
  FloatBuffer topk_weight_;  ///< [experts_per_token]
  std::vector<std::uint32_t> topk_id_;
  ExpertUses uses_;
  FloatBuffer expert_out_;           ///< [row][rank][hidden]
  std::vector<LeasedExpert> ready_;  ///< leased and not computed yet
  ExpertBatch batch_;
  FloatBuffer shared_gate_, shared_up_;    ///< [shared intermediate]
  FloatBuffer shared_out_, shared_sigma_;  ///< [hidden], [1]
  std::vector<const float*> x_rows_;
  std::vector<float*> y_rows_;
  std::vector<float> scores_;  ///< attention scores and one page's sum of values, per thread
  std::size_t scores_stride_ = 0;
  WeightPanels panels_;
  std::vector<float> logits_;
  std::vector<std::uint32_t> candidates_;  ///< look-ahead
  std::vector<float> candidate_scores_;
};

}  // namespace stoker
