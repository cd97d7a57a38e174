// One step as a backend works on it: the caller's segments and results, and a table of rows.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gpu-worker/decode.h"

namespace stoker {

/// One row of the batch: a token of a segment.
struct Row {
  std::uint32_t segment = 0, token = 0, position = 0;
};

/// The spans are the caller's; rows and first_row lie in the RowTable.
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
  std::span<const Row> rows;
  std::span<const std::uint32_t> first_row;  ///< per segment, plus the end

  /// The segment's first error stays.
  void fail(std::uint32_t segment, Error error);
  [[nodiscard]] bool row_alive(std::size_t row) const { return !results[rows[row].segment].error; }
  [[nodiscard]] bool any_alive() const;
  /// Look-ahead and routing samples leave for decode steps only.
  [[nodiscard]] bool looks_ahead(std::uint32_t candidates) const {
    return observer != nullptr && candidates != 0 && access == Access::decode;
  }
  /// A wait for the source that lasted from `before` to `now` ended with `event`.
  void count_stall(const SourceEvent& event, Duration before, Duration now);
  /// on_token() for every row: the earliest moment at which somebody could guess what the step will want.
  void announce(std::uint32_t candidates) const;
  /// First and end row of those that want logits from segment `s`; empty when it failed.
  struct Range {
    std::size_t begin, end;
  };
  [[nodiscard]] Range logits_rows(std::size_t s) const;
  /// Gives every segment its rows of `logits`, which are those of logits_rows() of all segments in order.
  void hand_out(const float* logits, std::size_t vocab) const;
};

/// As Model::step() was called; without rows yet.
Step begin_step(std::span<const Segment> segments, Access access, ExpertSource& source,
                RoutingObserver* observer, std::span<SegmentResult> results, Duration now);

/// For a segment whose activations are not finite, wherever that began.
Error not_finite_error();

/// Storage of a step's rows, made once: laying out does not allocate.
class RowTable {
 public:
  /// `rows_max`: most tokens in one step.
  explicit RowTable(std::size_t rows_max);
  /// Results are cleared. Checks what callers promise: tokens in the vocabulary, no empty segment.
  void lay_out(Step& step, std::uint32_t vocab_size);

 private:
  std::size_t rows_max_;
  std::vector<Row> rows_;
  std::vector<std::uint32_t> first_row_;
};

}  // namespace stoker
