// The emulated GPU's memory: filled with NaN, with red zones, and out of the host's reach.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace stoker::emulation {

/// One address range, reserved up front. Pages can be touched only while an Access exists, that is while
/// operations of streams run: host code that follows a device pointer faults, as on a machine with a GPU.
/// Functions return what went wrong, or an empty string.
class DeviceMemory {
 public:
  class Access {
   public:
    explicit Access(const DeviceMemory& memory);
    ~Access();
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;

   private:
    const DeviceMemory& memory_;
  };

  DeviceMemory() = default;
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Once, before all else.
  [[nodiscard]] std::string reserve(std::uint64_t total_bytes);

  [[nodiscard]] std::string alloc(std::uint64_t bytes, void** out);
  /// Reports a write beyond one of its ends, too.
  [[nodiscard]] std::string free(void* p);
  /// Red zones of all that is allocated.
  [[nodiscard]] std::string check() const;

  /// Whether all of [p, p + bytes) lies in one allocation.
  [[nodiscard]] bool holds(const void* p, std::uint64_t bytes) const;
  /// Whether p is an address of the device at all.
  [[nodiscard]] bool owns(const void* p) const;
  [[nodiscard]] std::uint64_t used_bytes() const { return used_bytes_; }
  [[nodiscard]] std::uint64_t total_bytes() const { return total_bytes_; }

 private:
  void protect(int protection) const;
  [[nodiscard]] std::byte* find_room(std::uint64_t bytes) const;
  static std::string check_zones(const std::byte* p, std::uint64_t bytes);

  std::byte* begin_ = nullptr;
  std::uint64_t reserved_bytes_ = 0;
  std::byte* touched_end_ = nullptr;  ///< highest end of an allocation so far
  std::uint64_t total_bytes_ = 0, used_bytes_ = 0;
  std::map<std::byte*, std::uint64_t> allocations_;  ///< bytes asked for
  mutable int accesses_ = 0;
};

}  // namespace stoker::emulation
