// Lease tables: private counts, the reader bit, hints, and what is left after a kill -9.
#include "shm/lease.h"

#include <random>

#include "tests/unit/shm/child.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace stoker::test;

namespace {

std::uint16_t readers(const Pool& pool, std::uint32_t slot) {
  return unpack(pool.slots()[slot].word.load()).readers;
}

void retire(Pool& pool, std::uint32_t slot) {
  REQUIRE(update(pool.slots()[slot], [](SlotWord w) -> std::optional<SlotWord> {
    w.state = SlotState::retiring;
    return w;
  }));
}

}  // namespace

TEST_CASE("the bit is set with the first lease and cleared with the last") {
  const PoolSpec spec = small_spec("count");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  fill_slot(pool, SlotId{3}, ExpertKey{20});
  LeaseTable a(pool, 0), b(pool, 15);

  CHECK_FALSE(a.try_lease(ExpertKey{21}));
  const auto first = a.try_lease(ExpertKey{20});
  REQUIRE(first);
  CHECK(first->slot == SlotId{3});
  CHECK(readers(pool, 3) == 0x0001);
  REQUIRE(a.try_lease(ExpertKey{20}));
  REQUIRE(b.try_lease(ExpertKey{20}));
  CHECK(readers(pool, 3) == 0x8001);
  CHECK(a.count(SlotId{3}) == 2);
  CHECK(a.held() == 1);
  CHECK(census(pool).leased == 1);

  CHECK_FALSE(a.release(SlotId{3}));
  CHECK(readers(pool, 3) == 0x8001);
  CHECK_FALSE(a.release(SlotId{3}));
  CHECK(readers(pool, 3) == 0x8000);
  CHECK(a.held() == 0);
  CHECK_FALSE(b.release(SlotId{3}));
  CHECK(readers(pool, 3) == 0);
}

TEST_CASE("a retiring slot gives no new leases, keeps old ones, and reports its last reader") {
  const PoolSpec spec = small_spec("retire");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  fill_slot(pool, SlotId{0}, ExpertKey{5});
  LeaseTable holder(pool, 1), late(pool, 2);
  REQUIRE(holder.try_lease(ExpertKey{5}));
  retire(pool, 0);
  CHECK_FALSE(late.try_lease(ExpertKey{5}));
  CHECK(holder.try_lease(ExpertKey{5}));  // held already: only counts
  CHECK_FALSE(holder.release(SlotId{0}));
  CHECK(holder.release(SlotId{0}));  // the loader may be waiting for this
  CHECK(readers(pool, 0) == 0);
}

TEST_CASE("what the directory says is checked against the slot") {
  const PoolSpec spec = small_spec("directory");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  fill_slot(pool, SlotId{0}, ExpertKey{5});
  LeaseTable leases(pool, 0);
  SECTION("slot of another expert") { pool.experts()[6].slot.store(0); }
  SECTION("slot that is free") { pool.experts()[6].slot.store(1); }
  SECTION("slot out of range") { pool.experts()[6].slot.store(8); }
  SECTION("slot far out of range") { pool.experts()[6].slot.store(0xFFFFFFFE); }
  CHECK_FALSE(leases.try_lease(ExpertKey{6}));
  SECTION("also when the slot is held for its own expert") {
    REQUIRE(leases.try_lease(ExpertKey{5}));
    pool.experts()[6].slot.store(0);
    CHECK_FALSE(leases.try_lease(ExpertKey{6}));
  }
}

TEST_CASE("the first lease of hinted content counts the hint, once") {
  const PoolSpec spec = small_spec("hint");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  fill_slot(pool, SlotId{0}, ExpertKey{5}, SlotOrigin::hint_unused);
  fill_slot(pool, SlotId{1}, ExpertKey{6}, SlotOrigin::warm);
  LeaseTable a(pool, 0), b(pool, 1);
  CHECK(a.try_lease(ExpertKey{5})->hint_hit);
  CHECK_FALSE(b.try_lease(ExpertKey{5})->hint_hit);
  CHECK(pool.slots()[0].origin.load() == static_cast<std::uint32_t>(SlotOrigin::demand));
  CHECK_FALSE(a.try_lease(ExpertKey{6})->hint_hit);
  CHECK(pool.slots()[1].origin.load() == static_cast<std::uint32_t>(SlotOrigin::warm));
}

TEST_CASE("a granted slot is adopted only if the loader really set the bit") {
  const PoolSpec spec = small_spec("grant");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  fill_slot(pool, SlotId{4}, ExpertKey{5});
  LeaseTable leases(pool, 3);
  CHECK_FALSE(leases.adopt(SlotId{4}));
  CHECK_FALSE(leases.adopt(SlotId{8}));
  CHECK_FALSE(leases.adopt(SlotId{kNone}));
  REQUIRE(update(pool.slots()[4], [](SlotWord w) -> std::optional<SlotWord> {
    w.readers = 1U << 3;
    return w;
  }));
  REQUIRE(leases.adopt(SlotId{4}));
  CHECK(leases.held() == 1);
  leases.release(SlotId{4});
  CHECK(readers(pool, 4) == 0);
}

TEST_CASE("kill -9 of a lease holder: reclaim frees exactly its leases") {
  const PoolSpec spec = small_spec("kill");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  for (std::uint32_t i = 0; i < 6; ++i) fill_slot(pool, SlotId{i}, ExpertKey{i});
  LeaseTable survivor(pool, 0);
  REQUIRE(survivor.try_lease(ExpertKey{1}));
  REQUIRE(survivor.try_lease(ExpertKey{5}));
  Child child([&](const Link& link) {
    auto mine = Pool::attach(spec.name);
    if (!mine) return 1;
    LeaseTable leases(*mine, 7);
    for (const std::uint32_t key : {0U, 1U, 2U, 2U, 3U})
      if (!leases.try_lease(ExpertKey{key})) return 2;
    leases.release(SlotId{3});
    link.say('h');
    return link.hear() == 'x' ? 0 : 3;
  });
  REQUIRE(child.hear() == 'h');
  retire(pool, 2);
  child.kill_now();
  CHECK(census(pool).leased == 4);
  CHECK(reclaim_process(pool, 7) == 3);
  CHECK(readers(pool, 0) == 0);
  CHECK(readers(pool, 1) == 1);
  CHECK(readers(pool, 2) == 0);
  CHECK(readers(pool, 5) == 1);
  CHECK(unpack(pool.slots()[2].word.load()).state == SlotState::retiring);
  CHECK(census(pool).leased == 2);
  CHECK(reclaim_process(pool, 7) == 0);
}

TEST_CASE("kill -9 at random moments of lease traffic: no bit is left") {
  const PoolSpec spec = small_spec("killrandom");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  for (std::uint32_t i = 0; i < 8; ++i) fill_slot(pool, SlotId{i}, ExpertKey{i});
  std::mt19937 random(11);
  for (int round = 0; round < 50; ++round) {
    pool.header().step.store(0);
    Child child([&](const Link&) {
      LeaseTable leases(pool, 9);
      std::mt19937 own(static_cast<std::uint32_t>(round));
      for (;;) {
        const SlotId slot{static_cast<std::uint32_t>(own() % 8)};
        if (leases.count(slot) != 0)
          leases.release(slot);
        else if (!leases.try_lease(ExpertKey{slot.value}))
          return 1;
        pool.header().step.fetch_add(1);
      }
    });
    const std::uint64_t moment = 1 + random() % 3000;
    while (pool.header().step.load() < moment) ::sched_yield();
    child.kill_now();
    const std::uint32_t before = census(pool).leased;
    CHECK(reclaim_process(pool, 9) == before);
    CHECK(census(pool).leased == 0);
  }
}

TEST_CASE("reclaim frees demand entries and the process entry, and leaves nonsense alone") {
  const PoolSpec spec = small_spec("reclaim");
  const NameGuard guard(spec.name);
  Pool pool = take(Pool::create_or_adopt(spec));
  ProcessEntry& process = pool.process(2);
  process.state.store(static_cast<std::uint32_t>(ProcessState::attached));
  process.pid.store(123);
  process.demands[5].state.store(static_cast<std::uint32_t>(DemandState::pending));
  process.demands[6].state.store(77);
  process.demand_head.store(9);
  pool.slots()[0].word.store(~std::uint64_t{0});                         // impossible state, all readers
  pool.slots()[1].word.store(pack({SlotState::filling, 1, 0xFFFF, 1}));  // readers where none can be
  CHECK(reclaim_process(pool, 2) == 0);
  CHECK(process.state.load() == static_cast<std::uint32_t>(ProcessState::free));
  CHECK(process.pid.load() == 0);
  CHECK(process.demand_head.load() == 0);
  for (const DemandEntry& demand : process.demands)
    CHECK(demand.state.load() == static_cast<std::uint32_t>(DemandState::free));
}
