// Experts on the CPU, several at a time, straight from where they lie: both backends compute with this one.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/config.h"
#include "gpu-worker/cpu/buffer.h"
#include "gpu-worker/cpu/kernels.h"
#include "gpu-worker/cpu/thread_pool.h"
#include "gpu-worker/expert_source.h"
#include "gpu-worker/expert_uses.h"

namespace stoker {

/// Experts that are computed together: enough for a decode step of the published models, few enough that a
/// prefill through a small pool gives slots back early.
inline constexpr std::size_t kExpertBatch = 16;

/// Rows of W per work item: about eight items per thread, none below 32 KiB of weights, whole panels.
std::size_t row_grain(const Matrix& w, const ThreadPool& pool);

/// Scratch of Kernels::matmul for every thread.
class WeightPanels {
 public:
  /// `widest`: most columns of any matrix.
  WeightPanels(std::size_t widest, const ThreadPool& pool)
      : stride_(kPanelRows * widest), floats_(stride_ * pool.threads()) {}
  [[nodiscard]] float* of(unsigned thread) { return floats_.data() + thread * stride_; }

 private:
  std::size_t stride_;
  FloatBuffer floats_;
};

class ExpertBatch {
 public:
  /// For steps of up to `rows` rows. The references must outlive it.
  ExpertBatch(const ModelConfig& config, DType dtype, const Kernels& kernels, ThreadPool& pool,
              std::size_t rows);

  /// Whether experts of `pairs` pairs so far leave room for any other one.
  [[nodiscard]] bool has_room(std::size_t experts, std::size_t pairs) const {
    return experts < kExpertBatch && pairs + rows_ <= pairs_max_;
  }
  /// out[pair] = down(silu(gate h[row]) * (up h[row])) for every pair that uses an expert of `leased`: pair =
  /// row * k + rank, rows of hidden floats. At most what has_room() allowed.
  void run(std::span<const LeasedExpert> leased, const ExpertUses& uses, const float* h, float* out);

 private:
  struct Matrices {
    Matrix gate, up, down;
  };
  /// Its pairs have the rows first .. first + count of the row tables.
  struct Entry {
    Matrices matrices;
    std::uint32_t first = 0, count = 0;
  };
  [[nodiscard]] Matrices matrices_of(const LeasedExpert& expert) const;
  void collect(std::span<const LeasedExpert> leased, const ExpertUses& uses, const float* h, float* out);
  template <class Body>
  void for_rows(std::uint32_t rows, std::size_t grain, const Body& body);

  const ModelConfig& config_;
  DType dtype_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  std::size_t rows_, pairs_max_;
  std::vector<Entry> entries_;
  FloatBuffer gate_, up_;  ///< [pair][intermediate]
  std::vector<const float*> x_rows_;
  std::vector<float*> y_rows_, gate_rows_, up_rows_;
  WeightPanels panels_;
};

}  // namespace stoker
