// Small models in memory for the tests of gpu-worker/: weights by the generator of model.md A8, stored in any
// dtype as a safetensors image, experts served from plain memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "gpu-worker/decode.h"

namespace stoker::testing {

/// model.md A8: FNV-1a of the name seeds a 32-bit generator; value = mean + amplitude * u.
std::vector<double> generate(const std::string& name, double mean, double amplitude, std::size_t count);

float bf16_round(float x);
std::uint8_t f8_encode(float x);  ///< nearest even, saturating

/// A matrix in the form a checkpoint has it. scales: one per tile, F32 (already rounded to BF16).
struct Encoded {
  std::vector<std::byte> data;
  std::vector<float> scales;
};
Encoded encode(const std::vector<double>& values, std::uint32_t rows, std::uint32_t cols, DType dtype,
               std::uint32_t block_rows, std::uint32_t block_cols);
/// The exactly dequantised values.
std::vector<float> dequantise(const Encoded& e, std::uint32_t rows, std::uint32_t cols, DType dtype,
                              std::uint32_t block_rows, std::uint32_t block_cols);

struct TinyOptions {
  DType matrices = DType::f32;  ///< mixers, shared and routed experts
  DType others = DType::f32;    ///< norms, router, embedding, ...
  DType scale_dtype = DType::bf16;
  /// Matrices are quantised to FP8 and stored dequantised, as F32: the exact twin of an FP8 model.
  bool dequantised = false;
};

struct TinyExpert {
  std::vector<std::byte> bytes;  ///< the "slot": parts at odd offsets
  std::size_t gate = 0, up = 0, down = 0;
  std::vector<float> scales;
};

/// Config and weights. Tensors can be replaced before finish().
class TinyModel {
 public:
  TinyModel(ModelConfig config, TinyOptions options);
  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const WeightsImage& image() const { return *image_; }
  [[nodiscard]] TinyExpert& expert(std::size_t layer, std::size_t expert) {
    return experts_[layer * config_.experts + expert];
  }
  /// Leaves a tensor out, or changes its bytes, and parses the image again.
  void remove(const std::string& name);
  std::vector<std::byte>& bytes(const std::string& name);
  void rebuild();

  [[nodiscard]] std::unique_ptr<Model> load(CpuOptions options = {}) const;

 private:
  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<std::uint64_t> shape;
    std::vector<std::byte> data;
  };
  void add(const std::string& name, DType dtype, const std::vector<std::uint64_t>& shape, double mean,
           double amp);
  [[nodiscard]] Encoded store(const std::vector<double>& values, std::uint32_t rows,
                              std::uint32_t cols) const;
  void add_matrix(const std::string& name, std::uint32_t rows, std::uint32_t cols, bool quantised);
  void add_layer(std::size_t layer);
  void add_experts(std::size_t layer);

  ModelConfig config_;
  TinyOptions options_;
  std::vector<Tensor> tensors_;
  std::vector<TinyExpert> experts_;
  std::vector<std::byte> storage_;
  std::unique_ptr<WeightsImage> image_;
};

/// The model T0 of model.md, Appendix A.
ModelConfig t0_config();

/// Serves experts from a TinyModel: some "resident", the others after a pending answer and in an order drawn
/// from `seed`. Checks the protocol of ExpertSource.
class MemorySource final : public ExpertSource {
 public:
  explicit MemorySource(TinyModel& model, std::uint32_t seed = 0) : model_(model), random_(seed) {}
  void begin(LayerId layer, std::span<const ExpertId> wanted, Access access) override;
  Result<SourceEvent> next(bool wait) override;
  void release(const LeasedExpert& expert) override;

  unsigned resident_percent = 100;
  unsigned landed_percent = 25;  ///< of the misses that are there already when next(false) asks for one
  std::set<std::pair<std::uint32_t, std::uint32_t>> failing;  ///< (layer, expert)
  bool broken = false;                                        ///< next() returns an Error
  std::uint64_t served = 0;
  std::uint64_t waits = 0;

 private:
  std::uint32_t draw();
  TinyModel& model_;
  std::uint32_t random_;
  LayerId layer_;
  std::vector<ExpertId> hits_, misses_;
  bool over_ = true;
  std::set<std::uint32_t> held_;  ///< handles of leases not released
};

/// Runs tokens through one sequence in steps of the given sizes (the last repeats); all logits,
/// [token][vocab].
std::vector<float> run_all(Model& model, ExpertSource& source, Sequence& sequence,
                           const std::vector<std::uint32_t>& tokens, const std::vector<std::size_t>& steps,
                           Access access = Access::prefill);

}  // namespace stoker::testing
