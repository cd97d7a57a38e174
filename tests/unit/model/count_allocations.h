// Counts calls of operator new while asked to; linking count_allocations.cc replaces the global operators.
#pragma once

#include <cstdint>

namespace stoker::testing {
void start_counting_allocations();
std::uint64_t stop_counting_allocations();
}  // namespace stoker::testing
