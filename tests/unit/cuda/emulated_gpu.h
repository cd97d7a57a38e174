// An open emulated GPU for the length of a test, and memory on it.
#pragma once

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "gpu-worker/cuda/module.h"
#include "tests/unit/cuda/emulated_trouble.h"

namespace stoker::device {

inline std::string text(Status status) { return status == nullptr ? "" : status; }

/// Contains `part`; an empty `part` is not a wildcard here.
inline bool says(const std::string& status, const std::string& part) {
  INFO(status);
  return !part.empty() && status.find(part) != std::string::npos;
}

class EmulatedGpu {
 public:
  explicit EmulatedGpu(std::uint64_t seed = 1, std::uint64_t memory_bytes = 64 << 20) {
    ::setenv("STOKER_EMULATION_SEED", std::to_string(seed).c_str(), 1);
    ::setenv("STOKER_EMULATED_VRAM", std::to_string(memory_bytes).c_str(), 1);
    REQUIRE(text(runtime::open(0, &info)) == "");
  }
  ~EmulatedGpu() { runtime::close(); }
  EmulatedGpu(const EmulatedGpu&) = delete;
  EmulatedGpu& operator=(const EmulatedGpu&) = delete;

  template <class T>
  T* alloc(std::size_t count) {
    void* p = nullptr;
    REQUIRE(text(runtime::alloc(count * sizeof(T), &p)) == "");
    return static_cast<T*>(p);
  }

  template <class T>
  T* alloc_host(std::size_t count) {
    void* p = nullptr;
    REQUIRE(text(runtime::alloc_host(count * sizeof(T), &p)) == "");
    return static_cast<T*>(p);
  }

  Stream* stream() {
    Stream* s = nullptr;
    REQUIRE(text(runtime::new_stream(false, &s)) == "");
    return s;
  }

  Event* event(bool timed = false) {
    Event* e = nullptr;
    REQUIRE(text(runtime::new_event(timed, &e)) == "");
    return e;
  }

  /// What is at p after all that was put on s.
  template <class T>
  std::vector<T> read(const T* p, std::size_t count, Stream* s) {
    std::vector<T> values(count);
    REQUIRE(text(runtime::to_host(values.data(), p, count * sizeof(T), s)) == "");
    return values;
  }

  Info info{};
};

}  // namespace stoker::device
