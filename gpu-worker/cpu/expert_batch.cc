#include "gpu-worker/cpu/expert_batch.h"

#include <algorithm>

#include "shm/base/check.h"

namespace stoker {

std::size_t row_grain(const Matrix& w, const ThreadPool& pool) {
  const std::size_t row_bytes = std::max<std::size_t>(1, w.bytes() / std::max(1U, w.rows));
  const std::size_t least = (32768 + row_bytes - 1) / row_bytes;
  const std::size_t fair = w.rows / (pool.threads() * 8) + 1;
  return (std::max(least, fair) + kPanelRows - 1) / kPanelRows * kPanelRows;
}

ExpertBatch::ExpertBatch(const ModelConfig& config, DType dtype, const Kernels& kernels, ThreadPool& pool,
                         std::size_t rows)
    : config_(config),
      dtype_(dtype),
      kernels_(kernels),
      pool_(pool),
      rows_(rows),
      // An expert can have `rows` pairs; twice that makes batches of several.
      pairs_max_(std::max<std::size_t>(2 * rows, config.experts_per_token)),
      gate_(pairs_max_ * config.moe_intermediate),
      up_(pairs_max_ * config.moe_intermediate),
      x_rows_(pairs_max_),
      y_rows_(pairs_max_),
      gate_rows_(pairs_max_),
      up_rows_(pairs_max_),
      panels_(std::max(config.hidden_size, config.moe_intermediate), pool) {
  entries_.reserve(kExpertBatch);
}

/// The three matrices of an expert where they lie.
ExpertBatch::Matrices ExpertBatch::matrices_of(const LeasedExpert& expert) const {
  const std::uint32_t hidden = config_.hidden_size;
  const std::uint32_t inner = config_.moe_intermediate;
  const std::uint32_t br = config_.scale_block_rows;
  const std::uint32_t bc = config_.scale_block_cols;
  Matrices m{{expert.gate, dtype_, inner, hidden, expert.scales, br, bc},
             {expert.up, dtype_, inner, hidden, nullptr, br, bc},
             {expert.down, dtype_, hidden, inner, nullptr, br, bc}};
  if (dtype_ == DType::f8_e4m3) {
    STOKER_CHECK(expert.scales != nullptr);
    const std::size_t tiles = std::size_t{(inner + br - 1) / br} * m.gate.scale_cols();
    m.up.scales = expert.scales + tiles;
    m.down.scales = expert.scales + 2 * tiles;
  }
  return m;
}

void ExpertBatch::collect(std::span<const LeasedExpert> leased, const ExpertUses& uses, const float* h,
                          float* out) {
  const std::size_t hidden = config_.hidden_size;
  const std::size_t inner = config_.moe_intermediate;
  entries_.clear();
  std::uint32_t at = 0;
  for (const LeasedExpert& expert : leased) {
    const ExpertUse& use = uses.of(expert.expert);
    entries_.push_back({matrices_of(expert), at, use.count});
    STOKER_CHECK(at + use.count <= pairs_max_);
    for (std::uint32_t i = 0; i < use.count; ++i, ++at) {
      const std::size_t pair = uses.pairs()[use.first + i];
      x_rows_[at] = h + pair / config_.experts_per_token * hidden;
      gate_rows_[at] = gate_.data() + at * inner;
      up_rows_[at] = up_.data() + at * inner;
      y_rows_[at] = out + pair * hidden;
    }
  }
}

/// body(entry, first row, end row, thread) over `rows` rows of every expert, at most `grain` at once.
template <class Body>
void ExpertBatch::for_rows(std::uint32_t rows, std::size_t grain, const Body& body) {
  const std::size_t pieces = (rows + grain - 1) / grain;
  pool_.run(entries_.size() * pieces, 1, [&](std::size_t begin, std::size_t end, unsigned thread) {
    for (std::size_t item = begin; item < end; ++item) {
      const auto first = static_cast<std::uint32_t>(item % pieces * grain);
      body(entries_[item / pieces], first, std::min(rows, first + static_cast<std::uint32_t>(grain)), thread);
    }
  });
}

/// Two loops over all experts: threads meet twice a batch, not twice an expert.
void ExpertBatch::run(std::span<const LeasedExpert> leased, const ExpertUses& uses, const float* h,
                      float* out) {
  if (leased.empty()) return;
  collect(leased, uses, h, out);
  const Matrices& first = entries_.front().matrices;
  for_rows(config_.moe_intermediate, row_grain(first.gate, pool_),
           [&](const Entry& e, std::uint32_t begin, std::uint32_t end, unsigned thread) {
             const MatmulArgs g{e.matrices.gate, x_rows_.data() + e.first, gate_rows_.data() + e.first,
                                e.count, nullptr};
             const MatmulArgs u{e.matrices.up, x_rows_.data() + e.first, up_rows_.data() + e.first, e.count,
                                nullptr};
             kernels_.matmul(g, begin, end, panels_.of(thread));
             kernels_.matmul(u, begin, end, panels_.of(thread));
             for (std::uint32_t i = e.first; i < e.first + e.count; ++i)
               kernels_.silu_mul(gate_rows_[i] + begin, up_rows_[i] + begin, end - begin);
           });
  for_rows(config_.hidden_size, row_grain(first.down, pool_),
           [&](const Entry& e, std::uint32_t begin, std::uint32_t end, unsigned thread) {
             const MatmulArgs d{e.matrices.down, gate_rows_.data() + e.first, y_rows_.data() + e.first,
                                e.count, nullptr};
             kernels_.matmul(d, begin, end, panels_.of(thread));
           });
}

}  // namespace stoker
