// The slot word: packing, the whole transition table, and a refill/lease stress with threads and processes.
#include "shm/slot_word.h"

#include <array>
#include <cstring>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "shm/lease.h"
#include "tests/unit/shm/child.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace stoker::test;

namespace {

/// Fills a slot with a pattern that belongs to its key and generation only.
void write_pattern(std::span<std::uint64_t> words, std::uint32_t key, std::uint32_t generation) {
  for (std::uint64_t& word : words) word = (std::uint64_t{generation} << 32) | key;
}

bool pattern_is_whole(std::span<const std::uint64_t> words, std::uint32_t key) {
  const std::uint64_t first = words[0];
  if (static_cast<std::uint32_t>(first) != key) return false;
  for (const std::uint64_t word : words)
    if (word != first) return false;
  return true;
}

std::span<std::uint64_t> words_of(Pool& pool, SlotId slot) {
  return {reinterpret_cast<std::uint64_t*>(pool.payload(slot)), pool.slot_bytes() / 8};
}

/// The loader's part: takes a slot through retiring, free, filling, ready with a new key. False when a
/// reader holds it. `guarded` = false plants the bug that the guard exists for.
bool refill(Pool& pool, SlotId slot, std::uint32_t key, bool guarded = true) {
  SlotControl& control = pool.slots()[slot.value];
  const auto retired = update(control, [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::ready) return std::nullopt;
    w.state = SlotState::retiring;
    return w;
  });
  const SlotState state = unpack(control.word.load(std::memory_order_acquire)).state;
  if (!retired && state != SlotState::retiring && state != SlotState::free) return false;
  if (state == SlotState::retiring) {
    pool.experts()[control.expert.load(std::memory_order_relaxed)].slot.store(kNone,
                                                                              std::memory_order_relaxed);
    const auto freed = update(control, [&](SlotWord w) -> std::optional<SlotWord> {
      if (w.state != SlotState::retiring || (guarded && w.readers != 0)) return std::nullopt;
      return SlotWord{SlotState::free, w.epoch, 0, w.generation};
    });
    if (!freed) return false;
  }
  const auto filling = update(control, [](SlotWord w) -> std::optional<SlotWord> {
    if (w.state != SlotState::free) return std::nullopt;
    return SlotWord{SlotState::filling, 1, 0, w.generation + 1};
  });
  if (!filling) return false;
  control.expert.store(key, std::memory_order_relaxed);
  control.origin.store(static_cast<std::uint32_t>(SlotOrigin::hint_unused), std::memory_order_relaxed);
  write_pattern(words_of(pool, slot), key, filling->generation);
  static_cast<void>(update(control, [](SlotWord w) -> std::optional<SlotWord> {
    w.state = SlotState::ready;
    return w;
  }));
  pool.experts()[key].slot.store(slot.value, std::memory_order_release);
  return true;
}

/// Takes and checks leases; returns how many showed torn or wrong content.
std::uint32_t read_leases(Pool& pool, unsigned index, std::uint32_t attempts) {
  LeaseTable leases(pool, index);
  std::mt19937 random(index);
  std::uint32_t torn = 0;
  for (std::uint32_t i = 0; i < attempts; ++i) {
    const ExpertKey key{static_cast<std::uint32_t>(random() % pool.expert_count())};
    const auto lease = leases.try_lease(key);
    if (!lease) continue;
    const auto again = leases.try_lease(key);  // counts privately only
    if (!pattern_is_whole(words_of(pool, lease->slot), key.value)) ++torn;
    leases.release(lease->slot);
    if (again) {
      if (!pattern_is_whole(words_of(pool, again->slot), key.value)) ++torn;
      leases.release(again->slot);
    }
  }
  return torn + leases.held();
}

/// read_leases() until `stop`, at least once; `round` is called after each.
template <class Stop, class Round>
std::uint32_t keep_reading(Pool& pool, unsigned index, Stop stop, Round round) {
  std::uint32_t torn = 0;
  do {
    torn += read_leases(pool, index, 1000);
    round();
  } while (!stop());
  return torn;
}

constexpr std::uint64_t kRefills = 5000;

/// Refills slots kRefills times, each with a key no other slot holds.
std::uint64_t keep_refilling(Pool& pool, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uint64_t refills = 0;
  while (refills < kRefills) {
    const SlotId slot{static_cast<std::uint32_t>(random() % pool.slot_count())};
    const std::uint32_t per_slot = pool.expert_count() / pool.slot_count();
    const std::uint32_t key = slot.value * per_slot + static_cast<std::uint32_t>(random() % per_slot);
    if (refill(pool, slot, key)) ++refills;
  }
  return refills;
}

}  // namespace

TEST_CASE("slot words pack and unpack without loss") {
  std::mt19937_64 random(7);
  for (int i = 0; i < 10000; ++i) {
    const SlotWord word{static_cast<SlotState>(random() % kSlotStates), static_cast<std::uint8_t>(random()),
                        static_cast<std::uint16_t>(random()), static_cast<std::uint32_t>(random())};
    CHECK(unpack(pack(word)) == word);
  }
}

TEST_CASE("impossible states read as quarantined") {
  for (std::uint64_t state = kSlotStates; state < 256; ++state)
    CHECK(unpack(state << 56).state == SlotState::quarantined);
}

TEST_CASE("the transition table, all of it") {
  using S = SlotState;
  constexpr std::array<std::array<bool, kSlotStates>, kSlotStates> kAllowed = {{
      // to: free  filling ready  retiring quarantined     from:
      {{false, true, false, false, false}},  // free
      {{true, false, true, false, true}},    // filling
      {{false, false, true, true, false}},   // ready
      {{true, false, false, true, false}},   // retiring
      {{true, false, false, false, false}},  // quarantined
  }};
  for (unsigned from = 0; from < kSlotStates; ++from)
    for (unsigned to = 0; to < kSlotStates; ++to) {
      INFO("from " << from << " to " << to);
      CHECK(transition_allowed(static_cast<S>(from), static_cast<S>(to)) == kAllowed[from][to]);
    }
}

TEST_CASE("a transition that is not in the table aborts") {
  for (const auto& [from, to] : {std::pair{SlotState::free, SlotState::ready},
                                 {SlotState::ready, SlotState::filling},
                                 {SlotState::retiring, SlotState::filling}}) {
    Child child([from = from, to = to](const Link&) {
      static_cast<void>(!::freopen("/dev/null", "w", stderr));
      ::signal(SIGABRT, [](int) { ::_exit(42); });
      SlotControl slot;
      slot.word.store(pack({from, 0, 0, 0}));
      static_cast<void>(update(slot, [to](SlotWord w) -> std::optional<SlotWord> {
        w.state = to;
        return w;
      }));
      return 0;
    });
    CHECK(child.join() == 42);
  }
}

TEST_CASE("the content check sees a refill under a lease (canary: the stress below can fail)") {
  const PoolSpec spec = small_spec("canary");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  REQUIRE(refill(pool, SlotId{0}, 1));
  LeaseTable leases(pool, 0);
  const auto lease = leases.try_lease(ExpertKey{1});
  REQUIRE(lease);
  CHECK_FALSE(refill(pool, SlotId{0}, 2));  // the guard holds
  CHECK(pattern_is_whole(words_of(pool, lease->slot), 1));
  REQUIRE(refill(pool, SlotId{0}, 2, false));  // without it ...
  CHECK_FALSE(pattern_is_whole(words_of(pool, lease->slot), 1));
}

TEST_CASE("one writer, four reader threads: no lease sees a refill") {
  const PoolSpec spec = small_spec("threads");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  // Readers go on for as long as the writer does, whoever the kernel prefers.
  std::atomic<int> reading{0};
  std::atomic<bool> stop{false};
  std::atomic<std::uint32_t> torn{0};
  std::vector<std::thread> readers;
  for (unsigned i = 0; i < 4; ++i)
    readers.emplace_back([&, i] {
      bool first = true;
      torn += keep_reading(
          pool, i, [&] { return stop.load(); }, [&] { reading += std::exchange(first, false) ? 1 : 0; });
    });
  while (reading.load() < 4) std::this_thread::yield();
  const std::uint64_t refills = keep_refilling(pool, 1);
  stop = true;
  for (std::thread& reader : readers) reader.join();
  CHECK(torn.load() == 0);
  CHECK(refills > 0);
  CHECK(census(pool).leased == 0);
}

TEST_CASE("one writer, four reader processes: no lease sees a refill") {
  const PoolSpec spec = small_spec("processes");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  std::vector<std::unique_ptr<Child>> readers;
  for (unsigned i = 0; i < 4; ++i)
    readers.push_back(std::make_unique<Child>([&spec, i](const Link& link) {
      auto mine = Pool::attach(spec.name);
      if (!mine) return 99;
      bool first = true;
      const std::uint32_t torn = keep_reading(
          *mine, i, [&] { return mine->header().step.load() != 0; },
          [&] {
            if (std::exchange(first, false)) link.say('r');
          });
      return static_cast<int>(std::min<std::uint32_t>(torn, 98));
    }));
  for (auto& reader : readers) CHECK(reader->hear() == 'r');
  const std::uint64_t refills = keep_refilling(pool, 2);
  pool.header().step = 1;  // nobody else uses it here
  std::vector<int> codes;
  for (auto& reader : readers) codes.push_back(reader->join());
  CHECK(codes == std::vector<int>(4, 0));
  CHECK(refills > 0);
  CHECK(census(pool).leased == 0);
}
