// The CPU model: weights bound to the resident image, workspace, and the layers as member functions.
// decode.cc has the step from top to bottom; each mixer and the MoE block has a file of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/cpu/kernels.h"
#include "gpu-worker/cpu/sequence.h"
#include "gpu-worker/cpu/thread_pool.h"
#include "gpu-worker/decode.h"

namespace stoker {

/// Longest causal convolution that the DeltaNet mixer takes; published models have 4 taps.
inline constexpr std::uint32_t kConvTapsMax = 64;

/// Experts that are computed together: enough for a decode step of the published models, few enough that a
/// prefill through a small pool gives slots back early.
inline constexpr std::size_t kExpertBatch = 16;

/// Small vectors (norms, conv taps) are kept as F32; matrices stay where the image has them.
struct DeltaNetWeights {
  Matrix qkvz, ba, out;
  FloatBuffer conv;       ///< [taps][conv_dim], oldest tap first
  FloatBuffer neg_exp_a;  ///< -exp(A_log), per value head
  FloatBuffer dt_bias;
  FloatBuffer norm;  ///< plain w (model.md trap 1)
};

struct AttentionWeights {
  Matrix q, k, v, o;
  FloatBuffer q_norm, k_norm;  ///< 1 + w
};

struct MoeWeights {
  Matrix router;                               ///< [experts, hidden]
  Matrix shared_scale;                         ///< [1, hidden]: the shared expert's sigmoid gate
  Matrix shared_gate, shared_up, shared_down;  ///< absent when shared_intermediate == 0
};

struct LayerWeights {
  MixerType mixer = MixerType::linear_attention;
  FloatBuffer input_norm, post_norm;  ///< 1 + w
  DeltaNetWeights delta;              ///< one of the two mixers is bound
  AttentionWeights attention;
  MoeWeights moe;
};

struct ModelWeights {
  Matrix embed, lm_head;
  FloatBuffer final_norm;
  std::vector<LayerWeights> layers;
  DType expert_dtype = DType::other;
  std::vector<FloatBuffer> scales;  ///< widened tile scales of the resident FP8 matrices
};

/// Binds and checks every tensor that `config` implies. Errors name the tensor.
Result<ModelWeights> bind_weights(const ModelConfig& config, const WeightsImage& image,
                                  const Kernels& kernels, ThreadPool& pool);

/// One row of the batch: a token of a segment.
struct Row {
  std::uint32_t segment = 0, token = 0, position = 0;
};

/// Sizes that follow from the config.
struct Dims {
  explicit Dims(const ModelConfig& c);
  std::uint32_t key_dim, value_dim, conv_dim;  ///< DeltaNet: key heads * dim, value heads * dim, channels
  std::uint32_t v_per_k;                       ///< value heads per key head
  std::uint32_t q_dim, kv_dim;                 ///< attention
  std::uint32_t q_per_kv;
};

class CpuModel final : public Model {
 public:
  CpuModel(const ModelConfig& config, const CpuOptions& options, const Clock& clock, const Kernels& kernels,
           std::unique_ptr<ThreadPool> pool, ModelWeights weights);

  [[nodiscard]] const ModelConfig& config() const override { return config_; }
  [[nodiscard]] std::unique_ptr<Sequence> new_sequence() override;
  [[nodiscard]] std::uint64_t sequence_bytes(std::uint64_t length) const override;
  [[nodiscard]] std::uint32_t step_tokens_max() const override { return options_.step_tokens; }
  Result<StepStats> step(std::span<const Segment> segments, Access access, ExpertSource& source,
                         RoutingObserver* observer, std::span<SegmentResult> results) override;
  [[nodiscard]] std::string describe() const override;

 private:
  /// What one step works on; the spans are the caller's.
  struct Step {
    std::span<const Segment> segments;
    std::span<SegmentResult> results;
    Access access = Access::decode;
    ExpertSource* source = nullptr;
    RoutingObserver* observer = nullptr;
    bool timed = false;  ///< the observer wants `timing`
    Duration began{};
    LayerTiming timing;  ///< of the layer in progress
    StepStats stats;
  };
  /// Work that one expert has in this layer: (row, rank) pairs use(first .. first + count).
  struct ExpertUse {
    std::uint32_t first = 0, count = 0;
    Tier tier = Tier::pool;
    bool failed = false;
  };
  struct ExpertMatrices {
    Matrix gate, up, down;
  };
  /// One expert of a batch: its pairs have the rows first .. first + count of the batch's row tables.
  struct BatchedExpert {
    ExpertMatrices matrices;
    std::uint32_t first = 0, count = 0;
  };

  // decode.cc
  void lay_out_rows(Step& step);
  void grow_sequences(Step& step);
  void announce(const Step& step) const;
  void embed();
  Result<void> run_layers(Step& step);
  void logits(Step& step);
  void fail_segment(Step& step, std::uint32_t segment, Error error);
  [[nodiscard]] bool row_alive(const Step& step, std::size_t row) const;
  [[nodiscard]] bool any_alive(const Step& step) const;

  // Helpers over all rows; x/y rows are `*_stride` floats apart.
  void matmul(const Matrix& w, const float* x, std::size_t x_stride, float* y, std::size_t y_stride,
              std::size_t rows, const std::uint32_t* scatter = nullptr);
  void matmul_rows(const Matrix& w, const float* const* x, float* const* y, std::size_t rows,
                   const std::uint32_t* scatter = nullptr);
  void norm_rows(const float* x, const FloatBuffer& w, float* y);
  void add_rows(float* x, const float* y);
  [[nodiscard]] float* scratch(unsigned thread) { return scratch_.data() + thread * scratch_stride_; }
  [[nodiscard]] std::size_t row_grain(const Matrix& w) const;

  // gated_delta_net.cc
  void delta_net(const Step& step, std::size_t layer);
  void convolve(const Step& step, std::size_t layer);
  void delta_rule(const Step& step, std::size_t layer);

  // gated_attention.cc
  void attention(const Step& step, std::size_t layer);
  void store_keys_values(const Step& step, std::size_t layer);
  void attend(const Step& step, std::size_t layer);
  void attend_row(const CpuSequence& sequence, std::size_t layer, std::size_t row, std::uint32_t first_head,
                  std::uint32_t heads, float* scores);

  // moe.cc
  Result<void> moe(Step& step, std::size_t layer);
  void route(const Step& step, std::size_t layer);
  void choose(const float* probabilities, std::uint32_t count, std::uint32_t* ids, float* weights) const;
  void collect_uses(const Step& step);
  void look_ahead(const Step& step, std::size_t layer);
  void shared_expert(std::size_t layer);
  Result<void> serve_experts(Step& step, std::size_t layer);
  Result<SourceEvent::Kind> take_ready(Step& step, bool wait);
  void count_stall(Step& step, const SourceEvent& event, Duration before) const;
  [[nodiscard]] ExpertMatrices matrices_of(const LeasedExpert& expert) const;
  template <class Body>
  void for_rows_of_batch(std::uint32_t rows, std::size_t grain, const Body& body);
  void run_experts();
  void check_outputs(Step& step, std::size_t layer, ExpertId expert);
  void fail_expert(Step& step, ExpertId expert, const Error& error);
  void sum_experts(const Step& step);
  void report_routing(const Step& step, std::size_t layer);
  [[nodiscard]] std::size_t rows() const { return rows_.size(); }

  ModelConfig config_;
  Dims dims_;
  CpuOptions options_;
  const Clock& clock_;
  const Kernels& kernels_;
  std::unique_ptr<ThreadPool> pool_;
  ModelWeights weights_;

  // Destination of each projected row: undoes the interleaving of model.md 2.1 when results are stored.
  std::vector<std::uint32_t> qkvz_scatter_, ba_scatter_, q_scatter_;
  std::vector<float> inv_freq_;

  // Workspace, sized for step_tokens rows. Shapes are [row][...].
  std::vector<Row> rows_;
  std::vector<std::uint32_t> first_row_;  ///< per segment, plus the end
  FloatBuffer x_, h_, mix_;               ///< residual, normalised input, block output: [hidden]
  FloatBuffer proj_;                      ///< DeltaNet q|k|v|z, or attention q|gate
  FloatBuffer side_;                      ///< DeltaNet b|a, or attention k|v
  FloatBuffer conv_;                      ///< DeltaNet after conv: q|k|v
  FloatBuffer core_;                      ///< mixer output before its output projection
  FloatBuffer rope_;                      ///< cos | sin of the row's position
  FloatBuffer router_;                    ///< probabilities, [experts]
  FloatBuffer ahead_;                     ///< the next layer's, for look-ahead
  FloatBuffer topk_weight_;               ///< [experts_per_token]
  std::vector<std::uint32_t> topk_id_;
  std::vector<ExpertUse> uses_;          ///< [experts]
  std::vector<std::uint32_t> use_list_;  ///< row * top-k + rank, grouped by expert
  std::vector<ExpertId> wanted_;
  FloatBuffer expert_out_;                 ///< [row][rank][hidden]
  std::size_t pairs_max_ = 0;              ///< (row, rank) pairs in one batch of experts
  std::vector<LeasedExpert> ready_;        ///< leased and not computed yet
  std::vector<BatchedExpert> batch_;       ///< parallel to ready_
  FloatBuffer gate_, up_;                  ///< [pair][intermediate]
  FloatBuffer shared_out_, shared_sigma_;  ///< [hidden], [1]
  std::vector<const float*> x_rows_;
  std::vector<float*> y_rows_, gate_rows_, up_rows_;
  std::vector<float> scores_;  ///< attention scores, per thread
  std::size_t scores_stride_ = 0;
  FloatBuffer scratch_;  ///< weight panels, per thread
  std::size_t scratch_stride_ = 0;
  std::vector<float> logits_;
  std::vector<ExpertId> event_ids_, event_chosen_;
  std::vector<Tier> event_tiers_;
  std::vector<float> event_scores_;
  std::vector<std::uint32_t> order_;  ///< look-ahead candidates
};

}  // namespace stoker
