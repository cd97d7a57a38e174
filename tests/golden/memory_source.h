// The resident image and every expert of a checkpoint in plain memory: the worker's inputs without loader,
// pool and shared memory. Reads through ExpertPlan and WeightsPlan, the same plans that the loader follows.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <new>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "gpu-worker/expert_source.h"
#include "gpu-worker/weights.h"
#include "shm/base/result.h"

namespace stoker::golden {

/// Page-aligned bytes, as the weights segment and pool slots are.
class AlignedBytes {
 public:
  AlignedBytes() = default;
  explicit AlignedBytes(std::uint64_t bytes)
      : data_(static_cast<std::byte*>(::operator new(bytes, std::align_val_t(kPageBytes)))), bytes_(bytes) {}
  [[nodiscard]] std::byte* data() { return data_.get(); }
  [[nodiscard]] std::span<const std::byte> span() const { return {data_.get(), bytes_}; }
  [[nodiscard]] std::uint64_t size() const { return bytes_; }

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kPageBytes)); }
  };
  std::unique_ptr<std::byte, Free> data_;
  std::uint64_t bytes_ = 0;
};

/// Reads what the plan says; the bytes are a weights image (shm/weights_segment.h).
Result<AlignedBytes> build_image(const Checkpoint& checkpoint, const WeightsPlan& plan);

/// Serves experts from memory, in the order wanted, or in a seeded random order with pending answers between,
/// which is what a disk does to a decode step.
class MemorySource final : public ExpertSource {
 public:
  /// `image` must outlive the source.
  static Result<std::unique_ptr<MemorySource>> make(const Checkpoint& checkpoint, const ExpertPlan& plan,
                                                    const WeightsImage& image);
  /// From now on in random order; 0: in the order wanted, nothing pending.
  void shuffle(std::uint32_t seed) { random_ = seed; }

  void begin(LayerId layer, std::span<const ExpertId> wanted, Access access) override;
  Result<SourceEvent> next(bool wait) override;
  void release(const LeasedExpert& expert) override;
  std::optional<LeasedExpert> try_lease(LayerId layer, ExpertId expert) override;

  /// Where the experts lie.
  [[nodiscard]] std::span<std::byte> memory() { return {slots_.data(), slots_.size()}; }
  [[nodiscard]] std::uint64_t slot_bytes() const { return slot_bytes_; }

  /// As if the event that was begun had never been: the step that wanted it has failed.
  void forget() { waiting_.clear(); }

  /// Leases that were given out and not yet given back.
  [[nodiscard]] std::uint32_t leased() const { return leased_; }

 private:
  struct Scales {
    const float* data = nullptr;
    std::uint64_t per_expert = 0;
  };
  std::uint32_t draw(std::uint32_t below);
  [[nodiscard]] LeasedExpert lease(LayerId layer, ExpertId expert);

  std::uint32_t experts_per_layer_ = 0;
  std::uint64_t slot_bytes_ = 0;
  std::vector<ExpertParts> parts_;
  std::vector<Scales> scales_;  ///< per layer
  AlignedBytes slots_;

  std::uint32_t random_ = 0;
  LayerId layer_;
  std::deque<ExpertId> waiting_;
  std::uint32_t leased_ = 0;
};

}  // namespace stoker::golden
