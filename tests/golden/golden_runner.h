// Runs a golden's token sequences through the model and compares with what transformers computed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gpu-worker/cuda/model.h"
#include "gpu-worker/decode.h"
#include "shm/base/clock.h"
#include "tests/golden/golden_file.h"
#include "tests/golden/memory_source.h"

namespace stoker::golden {

/// A golden's checkpoint, written to a temporary directory, read back and bound to models.
class GoldenRun {
 public:
  static Result<std::unique_ptr<GoldenRun>> make(const std::string& data_directory, const std::string& name);

  [[nodiscard]] const Golden& golden() const { return golden_; }
  [[nodiscard]] MemorySource& source() { return *source_; }
  Result<std::unique_ptr<Model>> load_model(Simd simd) const { return load_model(simd, golden_.config); }
  /// With another config than the golden's (to see that the check notices).
  Result<std::unique_ptr<Model>> load_model(Simd simd, const ModelConfig& config) const;
  /// On a device; see CudaOptions. Experts are copied from pinned memory, as from a pool.
  Result<std::unique_ptr<CudaModel>> load_cuda(CudaOptions options) const {
    return load_cuda(std::move(options), golden_.config);
  }
  Result<std::unique_ptr<CudaModel>> load_cuda(CudaOptions options, const ModelConfig& config) const;
  /// FP8 scales of one layer's experts, to be damaged.
  [[nodiscard]] std::span<float> expert_scales(std::uint32_t layer);

 private:
  explicit GoldenRun(Golden golden) : golden_(std::move(golden)) {}
  Result<void> read(const std::string& directory);

  Golden golden_;
  SteadyClock clock_;
  AlignedBytes image_;
  std::optional<WeightsImage> weights_;
  std::unique_ptr<MemorySource> source_;
};

/// A sequence that is fed piece by piece.
struct Feed {
  std::span<const std::uint32_t> tokens;
  std::span<const std::uint32_t> split;  ///< lengths of the pieces
};

/// Runs all feeds side by side, the n-th pieces of all in one step (shorter feeds end earlier). Returns the
/// logits of each, [tokens, vocab]. Pieces longer than the model's step are cut.
Result<std::vector<std::vector<float>>> run(Model& model, ExpertSource& source, std::span<const Feed> feeds);

/// Greedy continuation of `prompt` by `count` tokens, ties to the lower id.
Result<std::vector<std::uint32_t>> greedy(Model& model, ExpertSource& source,
                                          std::span<const std::uint32_t> prompt, std::size_t count);

/// Worst disagreement with the golden.
struct Difference {
  double relative = 0;  ///< of any kept logit, relative to the largest |logit| of its position
  std::size_t position = 0;
  std::string
      argmax;  ///< first position whose argmax differs although the golden's margin is clear; or empty
};
Difference compare(const Golden& golden, const Case& item, std::span<const float> logits);

}  // namespace stoker::golden
