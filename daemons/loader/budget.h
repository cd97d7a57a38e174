// How many experts the pool holds, from a memory budget. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "shm/base/result.h"

namespace stoker {

struct BudgetRequest {
  std::uint64_t ram = 0;            ///< bytes for everything below
  bool ram_is_explicit = false;     ///< the user named it (then it also bounds pool_slots)
  std::uint32_t pool_slots = 0;     ///< 0: as many as fit
  std::uint64_t weights_bytes = 0;  ///< resident weights
  std::uint64_t slot_bytes = 0;
  std::uint32_t expert_count = 0;       ///< in the whole model: more slots than that are useless
  std::uint32_t experts_per_token = 0;  ///< one layer's choice: the least a pool can work with
};

struct Budget {
  std::uint32_t slots = 0;
  std::uint64_t control_bytes = 0;
  std::uint64_t total_bytes = 0;  ///< weights + pool + control
};

/// Errc::no_memory with both numbers and the flag to change when not even one layer's choice fits.
Result<Budget> plan_budget(const BudgetRequest& request);

}  // namespace stoker
