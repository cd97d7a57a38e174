// State of one request in device memory: recurrent and conv state of the DeltaNet layers, and pages of the KV
// cache that come as the sequence grows and go back to a free list when it ends.
//
// Who admits requests counts what lives. Free pages and free states are of no use for each other, so what is
// free of one kind goes when the other needs its room: both together stay inside the budget.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "checkpoint/config.h"
#include "gpu-worker/cuda/device.h"
#include "gpu-worker/decode.h"

namespace stoker {

/// What sequences of one model have in common; outlives them all.
class SequenceMemory {
 public:
  SequenceMemory(const device::Api& api, device::Stream* stream, const ModelConfig& config,
                 std::uint64_t budget);

  [[nodiscard]] std::uint64_t state_bytes() const { return (recurrent_ + conv_) * sizeof(float); }
  [[nodiscard]] std::uint64_t page_bytes() const { return page_ * sizeof(float); }
  [[nodiscard]] std::uint64_t bytes_for(std::uint64_t length) const;
  [[nodiscard]] std::size_t recurrent_floats() const { return recurrent_; }

  /// Its content is anybody's.
  Result<DeviceArray<float>> take_state();
  Result<void> clear(DeviceArray<float>& state);
  Result<void> copy(const DeviceArray<float>& from, DeviceArray<float>& to);
  Result<DeviceArray<float>> take_page();
  void give_state(DeviceArray<float> state) { states_.push_back(std::move(state)); }
  void give_page(DeviceArray<float> page) { pages_.push_back(std::move(page)); }
  /// Held by sequences, and free.
  [[nodiscard]] std::uint64_t allocated() const { return allocated_; }

 private:
  using Free = std::vector<DeviceArray<float>>;
  Result<DeviceArray<float>> take(Free& own, Free& other, std::size_t floats);
  Result<void> drop_one(Free& list);

  const device::Api& api_;
  device::Stream* stream_;
  std::size_t recurrent_ = 0, conv_ = 0, page_ = 0;  ///< floats
  std::uint64_t budget_, allocated_ = 0;
  Free states_, pages_;  ///< kept, because allocating stops the device
};

/// A page of the KV cache, which forks of a sequence have in common.
class KvPage {
 public:
  KvPage(SequenceMemory& memory, DeviceArray<float> floats) : memory_(memory), floats_(std::move(floats)) {}
  KvPage(const KvPage&) = delete;
  KvPage& operator=(const KvPage&) = delete;
  ~KvPage() { memory_.give_page(std::move(floats_)); }
  [[nodiscard]] const DeviceArray<float>& floats() const { return floats_; }
  [[nodiscard]] DeviceArray<float>& floats() { return floats_; }

 private:
  SequenceMemory& memory_;
  DeviceArray<float> floats_;
};

class CudaSequence final : public Sequence {
 public:
  CudaSequence(SequenceMemory& memory, const void* model) : memory_(memory), model_(model) {}
  ~CudaSequence() override;
  CudaSequence(const CudaSequence&) = delete;
  CudaSequence& operator=(const CudaSequence&) = delete;

  [[nodiscard]] std::uint32_t length() const override { return length_; }
  [[nodiscard]] std::uint64_t memory_bytes() const override {
    return state_.bytes() + mark_.bytes() + pages_.size() * memory_.page_bytes();
  }
  Result<void> mark() override;
  [[nodiscard]] std::uint32_t marked() const override { return marked_; }
  Result<void> rewind() override;
  void unmark() override;
  [[nodiscard]] Result<std::unique_ptr<Sequence>> fork() const override;
  /// State (in stream order) and pages for positions [0, length).
  Result<void> reserve(std::uint64_t length);
  void set_length(std::uint32_t length) { length_ = length; }
  [[nodiscard]] const void* model() const { return model_; }

  [[nodiscard]] float* recurrent() const { return state_.data(); }
  [[nodiscard]] float* conv() const { return state_.data() + memory_.recurrent_floats(); }
  [[nodiscard]] const std::vector<float*>& pages() const { return page_pointers_; }

 private:
  Result<void> own(std::size_t page);

  SequenceMemory& memory_;
  const void* model_;
  DeviceArray<float> state_, mark_;
  std::vector<std::shared_ptr<KvPage>> pages_;
  std::vector<float*> page_pointers_;
  std::uint32_t length_ = 0, marked_ = 0;
};

}  // namespace stoker
