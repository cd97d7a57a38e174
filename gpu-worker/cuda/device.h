// Device memory, pinned memory, streams and events as values that free themselves, over the table of a
// module.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "gpu-worker/cuda/device_api.h"
#include "shm/base/result.h"

namespace stoker {

/// For a caller that has to know more of a failed call than its text.
inline Errc errc_of(device::Fault fault) {
  switch (fault) {
    case device::Fault::memory:
      return Errc::no_memory;
    case device::Fault::no_driver:
      return Errc::missing;
    case device::Fault::unsupported:
      return Errc::unsupported;
    case device::Fault::other:
      break;
  }
  return Errc::io;
}

/// Status as a Result; `what` begins the message.
inline Result<void> device_result(device::Status status, const char* what) {
  if (status == nullptr) return {};
  return fail(Errc::io, std::string(what) + ": " + status);
}

/// Returns from this function if the call fails. `what` ("copying expert 3") is made only then: calls are on
/// the decode path.
#define STOKER_DEVICE(what, ...)                                                          \
  do {                                                                                    \
    if (const ::stoker::device::Status stoker_bad = (__VA_ARGS__); stoker_bad != nullptr) \
      return ::stoker::fail(::stoker::Errc::io, std::string(what) + ": " + stoker_bad);   \
  } while (false)

/// `size` elements that Alloc made and Free takes back, not cleared. Moves, does not copy; the module must
/// outlive it.
template <class T, device::Status (*device::Api::*Alloc)(std::uint64_t, void**),
          void (*device::Api::*Free)(void*)>
class ModuleArray {
 public:
  ModuleArray() = default;
  static Result<ModuleArray> make(const device::Api& api, std::size_t size) {
    ModuleArray a;
    void* p = nullptr;
    const device::Status bad = (api.*Alloc)(std::max<std::size_t>(size, 1) * sizeof(T), &p);
    if (bad != nullptr) return refused(api.fault(), size * sizeof(T), bad);
    a.api_ = &api;
    a.data_ = static_cast<T*>(p);
    a.size_ = size;
    return a;
  }
  ModuleArray(ModuleArray&& other) noexcept { swap(other); }
  ModuleArray& operator=(ModuleArray&& other) noexcept {
    swap(other);
    return *this;
  }
  ~ModuleArray() {
    if (data_ != nullptr) (api_->*Free)(data_);
  }
  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] std::uint64_t bytes() const { return size_ * sizeof(T); }
  /// For the host's: it cannot follow a device pointer.
  T& operator[](std::size_t i) const { return data_[i]; }

 private:
  static constexpr bool kPinned = Alloc == &device::Api::alloc_host;
  /// Any call reports an error that broke the device earlier: only one for want of memory is about memory.
  static tl::unexpected<Error> refused(device::Fault fault, std::uint64_t bytes, device::Status bad) {
    std::string text =
        std::to_string(bytes) + (kPinned ? " bytes of pinned host memory: " : " bytes for the GPU: ") + bad;
    if (fault == device::Fault::memory)
      text += kPinned ? "; free host memory" : "; give a smaller --vram, or free memory";
    return fail(errc_of(fault), std::move(text));
  }
  void swap(ModuleArray& other) {
    std::swap(api_, other.api_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  const device::Api* api_ = nullptr;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

template <class T>
using DeviceArray = ModuleArray<T, &device::Api::alloc, &device::Api::free>;
/// Pinned host memory: the only kind that the device copies to and from while the host goes on.
template <class T>
using PinnedArray = ModuleArray<T, &device::Api::alloc_host, &device::Api::free_host>;

/// A stream, event or graph that is freed with its owner.
template <class T, void (*device::Api::*Free)(T*)>
class DeviceObject {
 public:
  DeviceObject() = default;
  DeviceObject(const device::Api& api, T* object) : api_(&api), object_(object) {}
  DeviceObject(DeviceObject&& other) noexcept
      : api_(other.api_), object_(std::exchange(other.object_, nullptr)) {}
  DeviceObject& operator=(DeviceObject&& other) noexcept {
    std::swap(api_, other.api_);
    std::swap(object_, other.object_);
    return *this;
  }
  ~DeviceObject() {
    if (object_ != nullptr) (api_->*Free)(object_);
  }
  [[nodiscard]] T* get() const { return object_; }

 private:
  const device::Api* api_ = nullptr;
  T* object_ = nullptr;
};
using DeviceStream = DeviceObject<device::Stream, &device::Api::free_stream>;
using DeviceEvent = DeviceObject<device::Event, &device::Api::free_event>;
using DeviceGraph = DeviceObject<device::Graph, &device::Api::free_graph>;

inline Result<DeviceStream> make_stream(const device::Api& api, bool urgent) {
  device::Stream* stream = nullptr;
  STOKER_DEVICE("making a stream", api.new_stream(urgent, &stream));
  return DeviceStream(api, stream);
}
inline Result<DeviceEvent> make_event(const device::Api& api, bool timed = false) {
  device::Event* event = nullptr;
  STOKER_DEVICE("making an event", api.new_event(timed, &event));
  return DeviceEvent(api, event);
}

}  // namespace stoker
