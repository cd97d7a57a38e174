#include "gpu-worker/cuda/sequence.h"

namespace stoker {

SequenceMemory::SequenceMemory(const device::Api& api, device::Stream* stream, const ModelConfig& c)
    : api_(api), stream_(stream) {
  const std::size_t heads = c.linear_value_heads;
  const std::size_t channels = 2ULL * c.linear_key_heads * c.linear_key_dim + heads * c.linear_value_dim;
  for (const MixerType mixer : c.mixers) {
    if (mixer == MixerType::full_attention) {
      page_ += 2ULL * c.kv_heads * device::kPagePositions * c.head_dim;
    } else {
      recurrent_ += heads * c.linear_key_dim * c.linear_value_dim;
      conv_ += channels * (c.conv_kernel - 1);
    }
  }
}

std::uint64_t SequenceMemory::bytes_for(std::uint64_t length) const {
  return state_bytes() + (length + device::kPagePositions - 1) / device::kPagePositions * page_bytes();
}

Result<DeviceArray<float>> SequenceMemory::take_state() {
  DeviceArray<float> state;
  if (!states_.empty()) {
    state = std::move(states_.back());
    states_.pop_back();
  } else {
    STOKER_TRY(state, DeviceArray<float>::make(api_, recurrent_ + conv_));
  }
  STOKER_DEVICE("clearing a sequence's state", api_.clear(state.data(), state.bytes(), stream_));
  return state;
}

Result<DeviceArray<float>> SequenceMemory::take_page() {
  if (pages_.empty()) return DeviceArray<float>::make(api_, page_);
  DeviceArray<float> page = std::move(pages_.back());
  pages_.pop_back();
  return page;
}

CudaSequence::~CudaSequence() {
  if (state_.data() != nullptr) memory_.give_state(std::move(state_));
  for (DeviceArray<float>& page : pages_) memory_.give_page(std::move(page));
}

Result<void> CudaSequence::reserve(std::uint64_t length) {
  if (state_.data() == nullptr) {
    STOKER_TRY(state_, memory_.take_state());
  }
  if (memory_.page_bytes() == 0) return {};
  const std::uint64_t pages = (length + device::kPagePositions - 1) / device::kPagePositions;
  while (pages_.size() < pages) {
    STOKER_TRY(DeviceArray<float> page, memory_.take_page());
    page_pointers_.push_back(page.data());
    pages_.push_back(std::move(page));
  }
  return {};
}

}  // namespace stoker
