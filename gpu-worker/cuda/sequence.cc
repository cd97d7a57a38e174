#include "gpu-worker/cuda/sequence.h"

#include "shm/base/check.h"

namespace stoker {
namespace {

std::uint64_t pages_for(std::uint64_t length) {
  return (length + device::kPagePositions - 1) / device::kPagePositions;
}

}  // namespace

SequenceMemory::SequenceMemory(const device::Api& api, device::Stream* stream, const ModelConfig& c,
                               std::uint64_t budget)
    : api_(api), stream_(stream), budget_(budget) {
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
  return state_bytes() + pages_for(length) * page_bytes();
}

Result<DeviceArray<float>> SequenceMemory::take_state() { return take(states_, pages_, recurrent_ + conv_); }
Result<DeviceArray<float>> SequenceMemory::take_page() { return take(pages_, states_, page_); }

/// `other` makes room, for the budget or because the device has no more.
Result<DeviceArray<float>> SequenceMemory::take(Free& own, Free& other, std::size_t floats) {
  if (!own.empty()) {
    DeviceArray<float> kept = std::move(own.back());
    own.pop_back();
    return kept;
  }
  const std::uint64_t bytes = floats * sizeof(float);
  while (allocated_ + bytes > budget_ && !other.empty()) STOKER_TRY_VOID(drop_one(other));
  auto made = DeviceArray<float>::make(api_, floats);
  while (!made && made.error().code == Errc::no_memory && !other.empty()) {
    STOKER_TRY_VOID(drop_one(other));
    made = DeviceArray<float>::make(api_, floats);
  }
  if (made) allocated_ += bytes;
  return made;
}

/// A copy out of what was given back may be under way: a rewind, then an unmark.
Result<void> SequenceMemory::drop_one(Free& list) {
  STOKER_DEVICE("waiting for sequences that ended", api_.synchronize(stream_));
  allocated_ -= list.back().bytes();
  list.pop_back();
  return {};
}

Result<void> SequenceMemory::clear(DeviceArray<float>& state) {
  STOKER_DEVICE("clearing a sequence's state", api_.clear(state.data(), state.bytes(), stream_));
  return {};
}

Result<void> SequenceMemory::copy(const DeviceArray<float>& from, DeviceArray<float>& to) {
  STOKER_DEVICE("copying a sequence's state", api_.on_device(to.data(), from.data(), from.bytes(), stream_));
  return {};
}

CudaSequence::~CudaSequence() {
  unmark();
  if (state_.data() != nullptr) memory_.give_state(std::move(state_));
}

Result<void> CudaSequence::reserve(std::uint64_t length) {
  if (state_.data() == nullptr) {
    STOKER_TRY(state_, memory_.take_state());
    STOKER_TRY_VOID(memory_.clear(state_));
  }
  if (memory_.page_bytes() == 0) return {};
  // Positions from length_ on are written: at most the page that they begin in is there already.
  if (const std::size_t first = length_ / device::kPagePositions; first < pages_.size()) {
    STOKER_TRY_VOID(own(first));
  }
  while (pages_.size() < pages_for(length)) {
    STOKER_TRY(DeviceArray<float> page, memory_.take_page());
    page_pointers_.push_back(page.data());
    pages_.push_back(std::make_shared<KvPage>(memory_, std::move(page)));
  }
  return {};
}

/// Makes a page that a fork has too one's own.
Result<void> CudaSequence::own(std::size_t page) {
  if (pages_[page].use_count() == 1) return {};
  STOKER_TRY(DeviceArray<float> mine, memory_.take_page());
  STOKER_TRY_VOID(memory_.copy(pages_[page]->floats(), mine));
  page_pointers_[page] = mine.data();
  pages_[page] = std::make_shared<KvPage>(memory_, std::move(mine));
  return {};
}

Result<std::unique_ptr<Sequence>> CudaSequence::fork() const {
  auto other = std::make_unique<CudaSequence>(memory_, model_);
  STOKER_TRY(other->state_, memory_.take_state());
  STOKER_TRY_VOID(memory_.copy(state_, other->state_));
  const auto pages = static_cast<std::ptrdiff_t>(std::min<std::size_t>(pages_.size(), pages_for(length_)));
  other->pages_.assign(pages_.begin(), pages_.begin() + pages);
  other->page_pointers_.assign(page_pointers_.begin(), page_pointers_.begin() + pages);
  other->length_ = length_;
  return other;
}

Result<void> CudaSequence::mark() {
  STOKER_CHECK(length_ > 0);
  marked_ = 0;
  if (mark_.data() == nullptr) {
    STOKER_TRY(mark_, memory_.take_state());
  }
  STOKER_TRY_VOID(memory_.copy(state_, mark_));
  marked_ = length_;
  return {};
}

Result<void> CudaSequence::rewind() {
  STOKER_CHECK(marked_ > 0);
  STOKER_TRY_VOID(memory_.copy(mark_, state_));
  while (pages_.size() > pages_for(marked_)) {
    pages_.pop_back();
    page_pointers_.pop_back();
  }
  length_ = marked_;
  return {};
}

void CudaSequence::unmark() {
  if (mark_.data() != nullptr) memory_.give_state(std::move(mark_));
  marked_ = 0;
}

}  // namespace stoker
