#include "gpu-worker/cuda/emulation/device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "shm/base/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, bytes) (static_cast<void>(p), static_cast<void>(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) (static_cast<void>(p), static_cast<void>(bytes))
#endif

namespace stoker::emulation {
namespace {

constexpr std::uint64_t kAlignment = 256;  // as cudaMalloc
constexpr std::uint64_t kZoneBytes = 256;  // before and after each allocation, at least
constexpr std::byte kZone{0xA5}, kPoison{0xFF};

// What a red zone and rounding add to many small allocations must not make a device look fuller than it is.
constexpr std::uint64_t kSlackBytes = 1ULL << 30;

std::uint64_t round_up(std::uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// From the first byte of the front zone to the last of the rear zone.
std::uint64_t gross(std::uint64_t bytes) { return kZoneBytes + round_up(bytes) + kZoneBytes; }

std::uint64_t rear_bytes(std::uint64_t bytes) { return round_up(bytes) - bytes + kZoneBytes; }

__attribute__((no_sanitize("address"))) bool is_zone(const std::byte* p, std::uint64_t bytes) {
  for (std::uint64_t i = 0; i < bytes; ++i) {
    if (p[i] != kZone) return false;
  }
  return true;
}

void fill(std::byte* p, std::byte value, std::uint64_t bytes) {
  std::memset(p, static_cast<int>(value), bytes);
}

}  // namespace

DeviceMemory::Access::Access(const DeviceMemory& memory) : memory_(memory) {
  if (memory_.accesses_++ == 0) memory_.protect(PROT_READ | PROT_WRITE);
}

DeviceMemory::Access::~Access() {
  if (--memory_.accesses_ == 0) memory_.protect(PROT_NONE);
}

DeviceMemory::~DeviceMemory() {
  if (begin_ == nullptr) return;
  ASAN_UNPOISON_MEMORY_REGION(begin_, static_cast<std::size_t>(touched_end_ - begin_));
  ::munmap(begin_, reserved_bytes_);
}

std::string DeviceMemory::reserve(std::uint64_t total_bytes) {
  total_bytes_ = total_bytes;
  reserved_bytes_ = total_bytes + total_bytes / 8 + kSlackBytes;
  void* at = ::mmap(nullptr, reserved_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) {
    return "cannot reserve " + std::to_string(reserved_bytes_) + " bytes of addresses (" +
           std::strerror(errno) + "); set STOKER_EMULATED_VRAM to less";
  }
  // protect() walks the page table each time the host looks at the device.
  (void)::madvise(at, reserved_bytes_, MADV_HUGEPAGE);
  begin_ = touched_end_ = static_cast<std::byte*>(at);
  return {};
}

std::string DeviceMemory::alloc(std::uint64_t bytes, void** out) {
  *out = nullptr;
  std::byte* block = bytes > total_bytes_ - used_bytes_ ? nullptr : find_room(bytes);
  if (block == nullptr) {
    return "out of device memory: " + std::to_string(bytes) + " bytes asked for, " +
           std::to_string(used_bytes_) + " of " + std::to_string(total_bytes_) +
           " in use (STOKER_EMULATED_VRAM sets the emulated GPU's total)";
  }
  touched_end_ = std::max(touched_end_, block + gross(bytes));
  const Access access(*this);
  std::byte* p = block + kZoneBytes;
  ASAN_UNPOISON_MEMORY_REGION(block, gross(bytes));
  fill(block, kZone, kZoneBytes);
  fill(p, kPoison, bytes);
  fill(p + bytes, kZone, rear_bytes(bytes));
  ASAN_POISON_MEMORY_REGION(block, kZoneBytes);
  ASAN_POISON_MEMORY_REGION(p + bytes, rear_bytes(bytes));
  allocations_.emplace(p, bytes);
  used_bytes_ += bytes;
  *out = p;
  return {};
}

std::string DeviceMemory::free(void* p) {
  const auto found = allocations_.find(static_cast<std::byte*>(p));
  if (found == allocations_.end()) return "free of memory that alloc() did not give, or that is free already";
  const auto [at, bytes] = *found;
  const Access access(*this);
  std::string damage = check_zones(at, bytes);
  fill(at, kPoison, bytes);  // who still reads it computes with NaN
  ASAN_POISON_MEMORY_REGION(at, bytes);
  allocations_.erase(found);
  used_bytes_ -= bytes;
  return damage;
}

std::string DeviceMemory::check() const {
  const Access access(*this);
  for (const auto& [at, bytes] : allocations_) {
    if (std::string damage = check_zones(at, bytes); !damage.empty()) return damage;
  }
  return {};
}

std::string DeviceMemory::check_zones(const std::byte* p, std::uint64_t bytes) {
  const bool front = is_zone(p - kZoneBytes, kZoneBytes), rear = is_zone(p + bytes, rear_bytes(bytes));
  if (front && rear) return {};
  return "something wrote " + std::string(front ? "behind the end" : "before the beginning") +
         " of an allocation of " + std::to_string(bytes) + " bytes of device memory";
}

bool DeviceMemory::holds(const void* p, std::uint64_t bytes) const {
  auto* at = const_cast<std::byte*>(static_cast<const std::byte*>(p));
  auto next = allocations_.upper_bound(at);
  if (next == allocations_.begin()) return false;
  const auto& [begin, size] = *--next;
  const auto offset = static_cast<std::uint64_t>(at - begin);
  return offset <= size && bytes <= size - offset;
}

bool DeviceMemory::owns(const void* p) const {
  const auto* at = static_cast<const std::byte*>(p);
  return at >= begin_ && at < begin_ + reserved_bytes_;
}

void DeviceMemory::protect(int protection) const {
  const auto bytes = static_cast<std::uint64_t>(touched_end_ - begin_);
  if (bytes != 0) STOKER_CHECK(::mprotect(begin_, bytes, protection) == 0);
}

/// First fit between the allocations, in order of address.
std::byte* DeviceMemory::find_room(std::uint64_t bytes) const {
  std::byte* end = begin_;
  for (const auto& [at, size] : allocations_) {
    if (static_cast<std::uint64_t>(at - kZoneBytes - end) >= gross(bytes)) return end;
    end = at - kZoneBytes + gross(size);
  }
  const auto left = reserved_bytes_ - static_cast<std::uint64_t>(end - begin_);
  return left >= gross(bytes) ? end : nullptr;
}

}  // namespace stoker::emulation
