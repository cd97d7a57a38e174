#include "daemons/loader/budget.h"

#include <algorithm>

#include "daemons/common/size.h"
#include "shm/layout.h"

namespace stoker {
namespace {

/// As the three shared-memory objects are rounded: weights with their header page, payload in huge pages.
std::uint64_t total_bytes(const BudgetRequest& request, std::uint64_t slots) {
  return kPageBytes + align_up(request.weights_bytes, kPageBytes) +
         align_up(slots * request.slot_bytes, kHugePageBytes) +
         ControlLayout::of(slots, request.expert_count).bytes;
}

}  // namespace

Result<Budget> plan_budget(const BudgetRequest& request) {
  std::uint64_t slots = request.pool_slots;
  if (slots == 0) {
    const std::uint64_t fixed = total_bytes(request, 0);
    const std::uint64_t left = request.ram > fixed ? request.ram - fixed : 0;
    slots = std::min<std::uint64_t>(left / (request.slot_bytes + sizeof(SlotControl)), request.expert_count);
    while (slots > 0 && total_bytes(request, slots) > request.ram) --slots;  // what rounding adds
  }
  if (slots < request.experts_per_token)
    return fail(Errc::no_memory,
                "the pool would hold " + std::to_string(slots) + " experts, but one token needs " +
                    std::to_string(request.experts_per_token) + " of a layer at once (" +
                    format_bytes(request.slot_bytes) + " each, beside " +
                    format_bytes(request.weights_bytes) + " of resident weights); raise --ram to at least " +
                    format_bytes(total_bytes(request, request.experts_per_token) + kPageBytes) +
                    " or --pool-slots");
  slots = std::min<std::uint64_t>(slots, request.expert_count);
  const std::uint64_t total = total_bytes(request, slots);
  if (request.ram_is_explicit && total > request.ram)
    return fail(Errc::no_memory, "--pool-slots " + std::to_string(slots) + " and the resident weights need " +
                                     format_bytes(total) + ", the budget --ram is " +
                                     format_bytes(request.ram));
  return Budget{.slots = static_cast<std::uint32_t>(slots),
                .control_bytes = ControlLayout::of(slots, request.expert_count).bytes,
                .total_bytes = total};
}

}  // namespace stoker
