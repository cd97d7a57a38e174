// The slot word: one atomic 64-bit word that decides who may touch a slot (design.md 4).
//
//   bits 63..56  state        free, filling, ready, retiring, quarantined
//   bits 55..48  epoch        low 8 bits of the loader epoch that last filled it
//   bits 47..32  readers      one bit per attached process (bit = its index in the process table)
//   bits 31..0   generation   incarnation of the content; bumped on free -> filling
//
// Life of a slot:
//   1. free      nobody owns it; content is meaningless.
//   2. filling   the loader (of `epoch`) has reads in flight into it. No readers.
//   3. ready     content is valid; processes take and drop leases by setting and clearing their bit.
//   4. retiring  the loader wants it back: no new leases, waits until readers is empty.
//   5. quarantined  a dead loader's reads may still land in it (measured: up to 139 ms after death).
//      Freed only when those reads are known to be over (io-worker/recovery.h).
//
// Readers are a set, not a count: a dead process's bit can be cleared by the survivor.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "shm/base/check.h"

namespace stoker {

enum class SlotState : std::uint8_t { free = 0, filling = 1, ready = 2, retiring = 3, quarantined = 4 };
inline constexpr unsigned kSlotStates = 5;

struct SlotWord {
  SlotState state = SlotState::free;
  std::uint8_t epoch = 0;
  std::uint16_t readers = 0;
  std::uint32_t generation = 0;
  bool operator==(const SlotWord&) const = default;
};

constexpr std::uint64_t pack(SlotWord w) {
  return (static_cast<std::uint64_t>(w.state) << 56) | (static_cast<std::uint64_t>(w.epoch) << 48) |
         (static_cast<std::uint64_t>(w.readers) << 32) | w.generation;
}

/// Words come from shared memory, hence hostile: an impossible state reads as quarantined, the one
/// state in which nobody uses the slot.
constexpr SlotWord unpack(std::uint64_t bits) {
  const auto raw = static_cast<std::uint8_t>(bits >> 56);
  return {.state = raw < kSlotStates ? static_cast<SlotState>(raw) : SlotState::quarantined,
          .epoch = static_cast<std::uint8_t>(bits >> 48),
          .readers = static_cast<std::uint16_t>(bits >> 32),
          .generation = static_cast<std::uint32_t>(bits)};
}

/// The transition table. Same-state updates (readers changing) are allowed where leases live.
constexpr bool transition_allowed(SlotState from, SlotState to) {
  using S = SlotState;
  switch (from) {
    case S::free:
      return to == S::filling;
    case S::filling:
      return to == S::ready || to == S::free || to == S::quarantined;
    case S::ready:
      return to == S::ready || to == S::retiring;
    case S::retiring:
      return to == S::retiring || to == S::free;
    case S::quarantined:
      return to == S::free;
  }
  return false;
}
static_assert(!transition_allowed(SlotState::free, SlotState::ready), "content must be filled first");
static_assert(!transition_allowed(SlotState::ready, SlotState::free), "leases must drain: retire first");
static_assert(!transition_allowed(SlotState::ready, SlotState::filling));
static_assert(!transition_allowed(SlotState::retiring, SlotState::filling));
static_assert(!transition_allowed(SlotState::quarantined, SlotState::ready));
static_assert(unpack(pack({SlotState::ready, 7, 0x8001, 42})) == SlotWord{SlotState::ready, 7, 0x8001, 42});

/// One cache line per slot; nothing that is only statistics lives here.
struct alignas(64) SlotControl {
  std::atomic<std::uint64_t> word{0};
  /// ExpertKey of the content; written by the loader while filling, read only under a lease
  /// (or validated by an unchanged word).
  std::atomic<std::uint32_t> expert{0};
  /// Origin of the content: see SlotOrigin. The first lease of a hinted slot turns it to `demand`.
  std::atomic<std::uint32_t> origin{0};
};
static_assert(sizeof(SlotControl) == 64);
static_assert(std::atomic<std::uint64_t>::is_always_lock_free);

enum class SlotOrigin : std::uint32_t { demand = 0, hint_unused = 1, warm = 2 };

/// The only function that changes a slot word. `step` maps the current word to the wanted one, or
/// nullopt to give up. Returns the word that was installed. acq_rel: publishing makes the DMA'd data
/// visible to lease takers, and the last release makes reads happen before the refill.
template <class Step>
std::optional<SlotWord> update(SlotControl& slot, Step step) {
  std::uint64_t seen = slot.word.load(std::memory_order_acquire);
  for (;;) {
    const SlotWord from = unpack(seen);
    const std::optional<SlotWord> to = step(from);
    if (!to) return std::nullopt;
    STOKER_CHECK(transition_allowed(from.state, to->state));
    STOKER_CHECK(to->readers == 0 || to->state == SlotState::ready || to->state == SlotState::retiring);
    if (slot.word.compare_exchange_weak(seen, pack(*to), std::memory_order_acq_rel,
                                        std::memory_order_acquire))
      return to;
  }
}

}  // namespace stoker
