// The loader's loop, turn by turn: what reaches the disk when, and the account of it.
#include <catch2/catch.hpp>

#include "tests/unit/io/loader_rig.h"
#include "tests/unit/shm/hidden_proc.h"

using namespace stoker;
using namespace stoker::test;

TEST_CASE("the demands of a layer are one submission", "[loader]") {
  Rig rig;
  const std::vector tickets{rig.demand(3), rig.demand(4), rig.demand(9)};
  rig.loader->turn(0ms);
  CHECK(rig.engine->offsets == std::vector{Rig::offset_of(3), Rig::offset_of(4), Rig::offset_of(9)});
  CHECK(rig.engine->submissions == 1);
  for (const DemandTicket ticket : tickets) rig.serve(ticket);
}

TEST_CASE("more demands than bytes in flight wait for their turn", "[loader]") {
  Rig rig(kExperts, {}, 2);
  const std::vector tickets{rig.demand(3), rig.demand(4), rig.demand(9)};
  rig.loader->turn(0ms);
  CHECK(rig.engine->offsets == std::vector{Rig::offset_of(3), Rig::offset_of(4)});
  for (const DemandTicket ticket : tickets) rig.serve(ticket);
  CHECK(rig.engine->most == 2);
}

TEST_CASE("the disk is busy while a read is in flight, however many are", "[loader]") {
  Rig rig;
  rig.run(50ms);
  CHECK(rig.counters().disk_busy_ns == 0);
  const Duration one = rig.serve(rig.demand(3));
  const auto busy = [&] { return Duration(static_cast<std::int64_t>(rig.counters().disk_busy_ns.load())); };
  CHECK(busy() >= kRead);
  CHECK(busy() <= one);
  rig.run(50ms);
  CHECK(busy() <= one);

  const Duration before = busy();
  const std::vector tickets{rig.demand(4), rig.demand(9)};
  Duration both{};
  for (const DemandTicket ticket : tickets) both += rig.serve(ticket);
  CHECK(busy() - before >= 2 * kRead);
  CHECK(busy() - before <= both);
}

TEST_CASE("a loader that spins sleeps only when no demand has come for that long", "[loader]") {
  Rig rig(kExperts, {}, 4, 5ms);
  rig.loader->turn(50ms);
  CHECK(rig.engine->last_wait == 50ms);
  (void)rig.serve(rig.demand(3));
  rig.loader->turn(50ms);
  CHECK(rig.engine->last_wait == 0ms);
  rig.pass(5ms);
  rig.loader->turn(50ms);
  CHECK(rig.engine->last_wait == 50ms);
  // The last reads of an orderly stop are slept for.
  (void)rig.demand(4);
  rig.loader->turn(50ms);
  CHECK(rig.engine->last_wait == 0ms);
  rig.loader->drain();
  CHECK(rig.engine->last_wait > 0ms);
}

TEST_CASE("a victim that is used after it was chosen stays", "[loader]") {
  Rig rig(4);  // slots
  for (const std::uint32_t expert : {0U, 1U, 2U, 3U}) rig.serve(rig.demand(expert));
  rig.serve(rig.demand(4));
  rig.run(1ms);  // the pool is full: the next victim is chosen now
  std::uint32_t unused = kExperts;
  for (const std::uint32_t expert : {0U, 1U, 2U, 3U, 4U}) {
    if (!rig.resident(expert)) continue;
    if (unused == kExperts) {
      unused = expert;
    } else {
      rig.use(expert);
    }
  }
  rig.serve(rig.demand(5));
  CHECK(!rig.resident(unused));
  CHECK(rig.resident(5));
  CHECK(rig.counters().evictions == 2);
}

TEST_CASE("a new loader takes leases back from the dead only", "[loader]") {
  Rig rig;
  (void)rig.serve(rig.demand(7));
  rig.hold(7);
  SECTION("the worker lives") {
    rig.restart();
    CHECK(rig.leased() == 1);
  }
  SECTION("another process has its pid") {
    rig.worker().start_ticks.store(1);
    rig.restart();
    CHECK(rig.leased() == 0);
  }
  SECTION("it was found dead already") {
    rig.worker().state.store(static_cast<std::uint32_t>(ProcessState::dead));
    rig.restart();
    CHECK(rig.leased() == 0);
  }
  SECTION("it lives, and /proc does not show it") {
    const auto hidden = HiddenProc::make();
    if (!hidden) {
      WARN("skipped: needs the right to mount over /proc");
      return;
    }
    rig.restart();
    CHECK(rig.leased() == 1);
  }
}
