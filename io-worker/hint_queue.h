// Hints that wait for a read: which comes next, which are too late, and how much they may cost.
//
// The next hint is the one whose layer its worker reaches first. A hint is too late once that layer has begun
// (ProcessEntry::progress of its own worker, so several workers do not make each other's hints late). Reads
// for hints have a budget of bytes per step of a worker; in layer l of n, (l + 1) / n of it may be spent, so
// that early layers do not use up what the last ones need.
#pragma once

#include <array>
#include <boost/circular_buffer.hpp>
#include <cstdint>
#include <optional>
#include <utility>

#include "shm/base/types.h"
#include "shm/layout.h"

namespace stoker {

struct LoaderHint {
  ExpertKey expert;
  float confidence = 0;
  std::uint32_t process = 0;               ///< whose step it is; below kProcessMax
  std::uint64_t step = 0;                  ///< that worker's own count
  std::uint32_t batch = 0;                 ///< hints of one message, best first
  std::uint32_t batch_reads = 0xFFFFFFFF;  ///< reads that the batch may cost
};

struct HintQueueOptions {
  std::uint32_t capacity = 512;  ///< beyond it the oldest fall out
  std::uint32_t layers = 1, experts_per_layer = 1;
  std::uint64_t step_reads = 0;  ///< budget per step of a worker in reads; 0: no limit
};

class HintQueue {
 public:
  using Progress = std::array<std::uint64_t, kProcessMax>;

  explicit HintQueue(const HintQueueOptions& options);
  void push(const LoaderHint& hint);
  /// Takes out the next hint that is neither late nor beyond its budgets; the others are dropped.
  std::optional<LoaderHint> take(const Progress& progress);
  /// It became a read.
  void issued(const LoaderHint& hint);
  [[nodiscard]] bool empty() const { return hints_.empty(); }
  /// Hints dropped since the last call.
  std::uint64_t take_dropped() { return std::exchange(dropped_, 0); }

 private:
  struct Spent {
    std::uint64_t step = 0, reads = 0;
  };
  static constexpr std::size_t kBatches = 64;  ///< remembered; older ones begin anew
  [[nodiscard]] std::uint32_t layer_of(const LoaderHint& hint) const;
  [[nodiscard]] std::uint64_t deadline_of(const LoaderHint& hint) const;
  [[nodiscard]] bool affordable(const LoaderHint& hint) const;

  HintQueueOptions options_;
  boost::circular_buffer<LoaderHint> hints_;
  std::array<Spent, kProcessMax> steps_{};
  std::array<Spent, kBatches> batches_{};  ///< `step` is the number of the batch
  std::uint64_t dropped_ = 0;
};

}  // namespace stoker
