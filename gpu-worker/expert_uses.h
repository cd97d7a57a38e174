// Who uses which expert in one layer: (row, rank) pairs grouped by expert, tiers, failures, and what
// observers are told. Shared by the backends, which only differ in how they compute.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "checkpoint/config.h"
#include "gpu-worker/step.h"

namespace stoker {

/// Work that one expert has in this layer: pairs()[first .. first + count).
struct ExpertUse {
  std::uint32_t first = 0, count = 0;
  Tier tier = Tier::pool;
};

class ExpertUses {
 public:
  /// For up to `rows` rows; does not allocate afterwards.
  ExpertUses(const ModelConfig& config, std::size_t rows);

  /// The layer's choice: ids and weights [row][k] by descending weight, of the caller and valid until
  /// report(). Rows of failed segments want nothing. An id outside the layer fails its segment: the router's
  /// input was not finite.
  void collect(Step& step, const std::uint32_t* ids, const float* weights);
  /// Distinct experts, ascending.
  [[nodiscard]] std::span<const ExpertId> wanted() const { return wanted_; }
  [[nodiscard]] const ExpertUse& of(ExpertId expert) const { return uses_[expert.value]; }
  /// row * k + rank, grouped by expert.
  [[nodiscard]] std::span<const std::uint32_t> pairs() const { return pairs_; }

  /// The expert is here, from `tier`.
  void took(Step& step, ExpertId expert, Tier tier);
  /// The expert could not be read: the segments that want it fail.
  void fail(Step& step, ExpertId expert, const Error& error);
  /// The output of a pair is not finite: its segment fails.
  void not_finite(Step& step, std::size_t layer, std::uint32_t pair);

  /// on_routing() for every living row.
  void report(const Step& step, std::size_t layer);
  /// on_lookahead() for one row: candidates of `layer` + 1, best first.
  void report_lookahead(const Step& step, std::size_t layer, std::size_t row, const std::uint32_t* candidates,
                        const float* scores, std::size_t count);

 private:
  std::uint32_t experts_, k_;
  const std::uint32_t* ids_ = nullptr;
  const float* weights_ = nullptr;
  std::vector<ExpertUse> uses_;
  std::vector<std::uint32_t> pairs_;
  std::vector<ExpertId> wanted_;
  std::vector<ExpertId> event_ids_, event_candidates_;
  std::vector<Tier> event_tiers_;
};

/// Names expert and layer, and the remedy.
Error not_finite_error(std::size_t layer, std::uint32_t expert);

}  // namespace stoker
