#include "gpu-worker/cuda/emulation/shared_memory.h"

#include <algorithm>
#include <cstring>

namespace stoker::emulation {
namespace {

constexpr std::byte kZone{0xA5};

/// A signalling NaN as float, and NaN as two halves or two bf16; as an index it is far out of range.
constexpr std::uint32_t kPoison = 0x7FA57FA5;

}  // namespace

void SharedMemory::begin_block(std::size_t dynamic_bytes) {
  ++block_;
  end_ = used_bytes_ = zone_count_ = dynamic_ = 0;
  add_zone();
  if (dynamic_bytes != 0) dynamic_ = reserve(dynamic_bytes, 16);
}

void* SharedMemory::place(SharedVariable& variable, std::size_t bytes, std::size_t alignment) {
  if (variable.block != block_) {
    if (used_bytes_ + bytes > kSharedBytesMax || zone_count_ == zones_.size() || alignment > kZoneBytes)
      return nullptr;
    variable = {block_, reserve(bytes, alignment)};
  }
  return memory_.data() + variable.offset;
}

bool SharedMemory::intact() const {
  return std::all_of(zones_.begin(), zones_.begin() + static_cast<std::ptrdiff_t>(zone_count_),
                     [&](std::size_t zone) {
                       return std::all_of(&memory_[zone], &memory_[zone] + kZoneBytes,
                                          [](std::byte b) { return b == kZone; });
                     });
}

std::size_t SharedMemory::reserve(std::size_t bytes, std::size_t alignment) {
  const std::size_t begin = (end_ + alignment - 1) / alignment * alignment;
  for (std::size_t i = 0; i < bytes; i += sizeof kPoison) {
    std::memcpy(&memory_[begin + i], &kPoison, std::min(sizeof kPoison, bytes - i));
  }
  end_ = begin + bytes;
  used_bytes_ += bytes;
  add_zone();
  return begin;
}

void SharedMemory::add_zone() {
  std::memset(&memory_[end_], static_cast<int>(kZone), kZoneBytes);
  zones_[zone_count_++] = end_;
  end_ += kZoneBytes;
}

}  // namespace stoker::emulation
