// Small pools for tests: a unique name per case, removed at the end.
#pragma once

#include <unistd.h>

#include <catch2/catch.hpp>
#include <string>

#include "shm/pool.h"

namespace stoker::test {

/// A name nobody else uses: process, and a label unique in the binary.
inline std::string unique_name(const std::string& label) {
  return "stoker-test." + std::to_string(::getpid()) + "." + label;
}

inline PoolSpec small_spec(const std::string& label) {
  PoolSpec spec;
  spec.name = unique_name(label);
  spec.slot_bytes = 8192;
  spec.slot_count = 8;
  spec.layers = 2;
  spec.experts_per_layer = 16;
  spec.checkpoint_fingerprint = 0x1234;
  return spec;
}

struct NameGuard {
  std::string name;
  explicit NameGuard(std::string n) : name(std::move(n)) {}
  NameGuard(const NameGuard&) = delete;
  NameGuard& operator=(const NameGuard&) = delete;
  ~NameGuard() { Pool::unlink(name); }
};

template <class T>
T take(Result<T> result) {
  if (!result) FAIL(result.error().text());
  return *std::move(result);
}

/// What a loader does to put an expert in a free slot.
inline void fill_slot(Pool& pool, SlotId slot, ExpertKey expert, SlotOrigin origin = SlotOrigin::demand) {
  SlotControl& control = pool.slots()[slot.value];
  const auto epoch = static_cast<std::uint8_t>(pool.header().epoch.load());
  REQUIRE(update(control, [&](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::free) return std::nullopt;
    return SlotWord{SlotState::filling, epoch, 0, w.generation + 1};
  }));
  control.expert.store(expert.value);
  control.origin.store(static_cast<std::uint32_t>(origin));
  pool.experts()[expert.value].slot.store(slot.value);
  REQUIRE(update(control, [&](SlotWord w) -> std::optional<SlotWord> {
    w.state = SlotState::ready;
    return w;
  }));
}

}  // namespace stoker::test
