// Counters in shared memory: one writer or many, read by anybody, never waited for.
#pragma once

#include <atomic>
#include <cstdint>

namespace stoker {

template <class Counter>
void add(Counter& counter, std::uint64_t by = 1) {
  counter.fetch_add(by, std::memory_order_relaxed);
}

}  // namespace stoker
