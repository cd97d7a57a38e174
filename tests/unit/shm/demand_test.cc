// The demand protocol: life of an entry, wrap-around, both sleeps, loader restart, hostile values.
#include "shm/demand.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <random>
#include <set>
#include <thread>

#include "shm/base/unique_fd.h"
#include "shm/lease.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace stoker::test;

namespace {

constexpr unsigned kIndex = 3;
/// Far beyond any scheduling delay: reaching it means that a wake-up was lost.
constexpr Duration kForEver = std::chrono::seconds(60);

struct Fixture {
  PoolSpec spec;
  NameGuard guard;
  Pool pool;
  explicit Fixture(const std::string& label)
      : spec(small_spec(label)), guard(spec.name), pool(take(Pool::create_or_adopt(spec))) {}
};

std::vector<Demand> drain(DemandIntake& intake) {
  std::vector<Demand> demands;
  intake.drain(demands);
  return demands;
}

}  // namespace

TEST_CASE("a demand goes to the loader and comes back granted or failed") {
  Fixture f("life");
  DemandIntake intake(f.pool);
  intake.attach(kIndex);
  DemandPort port(f.pool, kIndex);
  const auto a = port.post(ExpertKey{4}, kDemandScan);
  const auto b = port.post(ExpertKey{31}, 0);
  REQUIRE((a && b));
  CHECK(drain(intake).empty());  // not published yet
  CHECK_FALSE(port.publish());   // the loader is awake
  const auto demands = drain(intake);
  REQUIRE(demands.size() == 2);
  CHECK(demands[0].process == kIndex);
  CHECK(demands[0].expert == ExpertKey{4});
  CHECK(demands[0].flags == kDemandScan);
  CHECK(demands[1].expert == ExpertKey{31});
  CHECK(drain(intake).empty());
  CHECK(port.poll(*a).state == DemandState::pending);
  CHECK_FALSE(port.wait(Duration::zero()));

  CHECK(intake.grant(kIndex, *a, SlotId{7}, 1));
  CHECK(intake.fail(kIndex, *b, EIO, "shard.safetensors at 4096: " + std::string(500, 'x')));
  intake.notify(kIndex);
  CHECK(port.wait(kForEver));
  CHECK_FALSE(port.wait(Duration::zero()));
  const DemandResult granted = port.poll(*a);
  CHECK(granted.state == DemandState::granted);
  CHECK(granted.slot == SlotId{7});
  CHECK(granted.from_disk == 1);
  const DemandResult failed = port.poll(*b);
  CHECK(failed.state == DemandState::failed);
  CHECK(failed.os_errno == EIO);
  CHECK(failed.error.size() == kDemandErrorBytes - 1);
  CHECK(failed.error.rfind("shard.safetensors at 4096", 0) == 0);
  port.release(*a);
  port.release(*b);
  CHECK(port.in_use() == 0);
  CHECK_FALSE(intake.grant(kIndex, *a, SlotId{7}, 0));  // not pending any more
}

TEST_CASE("a full table refuses, and takes again after a release") {
  Fixture f("full");
  DemandIntake intake(f.pool);
  intake.attach(kIndex);
  DemandPort port(f.pool, kIndex);
  std::vector<DemandTicket> tickets;
  while (const auto ticket = port.post(ExpertKey{1}, 0)) tickets.push_back(*ticket);
  CHECK(tickets.size() == kDemandMax);
  static_cast<void>(port.publish());
  CHECK(drain(intake).size() == kDemandMax);
  REQUIRE(intake.grant(kIndex, tickets[10], SlotId{0}, 0));
  port.release(tickets[10]);
  const auto again = port.post(ExpertKey{2}, 0);
  REQUIRE(again);
  CHECK(*again == tickets[10]);
}

TEST_CASE("the ring wraps, also at the end of its 32-bit counters") {
  Fixture f("wrap");
  f.pool.process(kIndex).demand_head.store(0xFFFFFF00U);
  f.pool.process(kIndex).demand_tail.store(0xFFFFFF00U);
  DemandIntake intake(f.pool);
  intake.attach(kIndex);
  DemandPort port(f.pool, kIndex);
  std::mt19937 random(3);
  std::deque<std::pair<DemandTicket, std::uint32_t>> posted;
  std::uint32_t delivered = 0;
  for (std::uint32_t round = 0; delivered < 5 * kDemandMax; ++round) {
    for (auto i = random() % 300; i-- > 0;) {
      const std::uint32_t key = static_cast<std::uint32_t>(random() % 32);
      if (const auto ticket = port.post(ExpertKey{key}, 0)) posted.emplace_back(*ticket, key);
    }
    static_cast<void>(port.publish());
    for (const Demand& demand : drain(intake)) {  // in order, none lost, none twice
      REQUIRE_FALSE(posted.empty());
      REQUIRE(demand.ticket == posted.front().first);
      REQUIRE(demand.expert.value == posted.front().second);
      posted.pop_front();
      ++delivered;
      REQUIRE(intake.grant(kIndex, demand.ticket, SlotId{0}, 0));
      port.release(demand.ticket);
    }
    REQUIRE(posted.empty());
  }
}

TEST_CASE("a restarted loader gets exactly the pending demands") {
  Fixture f("restart");
  DemandPort port(f.pool, kIndex);
  std::vector<DemandTicket> tickets;
  {
    DemandIntake first(f.pool);
    first.attach(kIndex);
    for (std::uint32_t i = 0; i < 6; ++i) tickets.push_back(*port.post(ExpertKey{i}, 0));
    static_cast<void>(port.publish());
    CHECK(drain(first).size() == 6);
    REQUIRE(first.grant(kIndex, tickets[1], SlotId{0}, 0));
    REQUIRE(first.fail(kIndex, tickets[4], EIO, "x"));
  }                                                 // killed here
  tickets.push_back(*port.post(ExpertKey{20}, 0));  // published, never drained
  static_cast<void>(port.publish());
  tickets.push_back(*port.post(ExpertKey{21}, 0));  // pending, but its index comes later
  DemandIntake second(f.pool);
  CHECK(drain(second).empty());  // serves nobody yet
  second.resume(kIndex);
  CHECK_FALSE(second.prepare_sleep());  // there is something to list
  std::set<std::uint32_t> experts;
  for (const Demand& demand : drain(second)) experts.insert(demand.expert.value);
  CHECK(experts == std::set<std::uint32_t>{0, 2, 3, 5, 20, 21});
  static_cast<void>(port.publish());
  CHECK(drain(second).empty());  // 21 was delivered already
  CHECK(port.poll(tickets[1]).state == DemandState::granted);
  CHECK(port.poll(tickets[4]).state == DemandState::failed);

  // Completed before its index came through the ring, released and used again: delivered once more, once.
  REQUIRE(second.grant(kIndex, tickets[0], SlotId{0}, 0));
  port.release(tickets[0]);
  REQUIRE(*port.post(ExpertKey{9}, 0) == tickets[0]);
  static_cast<void>(port.publish());
  CHECK(drain(second).size() == 1);
}

TEST_CASE("hostile rings, keys, slots and states are survived") {
  Fixture f("hostile");
  ProcessEntry& process = f.pool.process(kIndex);
  DemandIntake intake(f.pool);
  intake.attach(kIndex);
  SECTION("ring indices out of range, and of free entries") {
    for (unsigned i = 0; i < 8; ++i)
      process.demand_ring[i].store(static_cast<std::uint16_t>(i % 2 == 0 ? 0xFFFF : i));
    process.demand_head.store(8);
    CHECK(drain(intake).empty());
  }
  SECTION("the same index many times") {
    process.demands[5].state.store(static_cast<std::uint32_t>(DemandState::pending));
    for (unsigned i = 0; i < 8; ++i) process.demand_ring[i].store(5);
    process.demand_head.store(8);
    CHECK(drain(intake).size() == 1);
  }
  SECTION("a head that cannot be: the table is listed instead") {
    process.demands[5].state.store(static_cast<std::uint32_t>(DemandState::pending));
    process.demand_head.store(0x80000000U);
    CHECK(drain(intake).size() == 1);
    CHECK(drain(intake).empty());
  }
  SECTION("an expert that does not exist is failed, not passed on") {
    DemandPort port(f.pool, kIndex);
    const auto ticket = port.post(ExpertKey{1}, 0);
    process.demands[ticket->value].expert.store(32);
    static_cast<void>(port.publish());
    CHECK(drain(intake).empty());
    CHECK(intake.refused() == 1);
    CHECK(port.wait(kForEver));
    CHECK(port.poll(*ticket).state == DemandState::failed);
    CHECK(port.poll(*ticket).error.find("expert 32") != std::string::npos);
  }
  SECTION("a granted slot out of range reads as failed") {
    DemandPort port(f.pool, kIndex);
    const auto ticket = port.post(ExpertKey{1}, 0);
    process.demands[ticket->value].slot.store(8);
    process.demands[ticket->value].state.store(static_cast<std::uint32_t>(DemandState::granted));
    CHECK(port.poll(*ticket).state == DemandState::failed);
  }
  SECTION("an unknown state and an unterminated text") {
    DemandPort port(f.pool, kIndex);
    const auto ticket = port.post(ExpertKey{1}, 0);
    std::memset(process.demands[ticket->value].error, 'e', kDemandErrorBytes);
    process.demands[ticket->value].state.store(99);
    CHECK(port.poll(*ticket).state == DemandState::failed);
    CHECK(port.poll(*ticket).error.size() == kDemandErrorBytes);
  }
  SECTION("a tail from the other side that cannot be only makes the ring look full") {
    DemandPort port(f.pool, kIndex);
    process.demand_tail.store(77);
    CHECK_FALSE(port.post(ExpertKey{1}, 0));
  }
}

TEST_CASE("a process that was reclaimed gets nothing more") {
  Fixture f("gone");
  DemandIntake intake(f.pool);
  intake.attach(kIndex);
  DemandPort port(f.pool, kIndex);
  const auto ticket = port.post(ExpertKey{1}, 0);
  static_cast<void>(port.publish());
  REQUIRE(drain(intake).size() == 1);
  intake.detach(kIndex);
  reclaim_process(f.pool, kIndex);
  CHECK_FALSE(intake.grant(kIndex, *ticket, SlotId{0}, 0));
  CHECK_FALSE(intake.fail(kIndex, *ticket, EIO, "x"));
  DemandPort next(f.pool, kIndex);
  intake.attach(kIndex);
  CHECK(next.post(ExpertKey{2}, 0));
  static_cast<void>(next.publish());
  CHECK(drain(intake).size() == 1);
}

TEST_CASE("sleeping loader: told once it announces, and not announced when there is work") {
  Fixture f("sleep");
  DemandIntake intake(f.pool);
  intake.attach(kIndex);
  DemandPort port(f.pool, kIndex);
  CHECK(intake.prepare_sleep());
  static_cast<void>(port.post(ExpertKey{1}, 0));
  CHECK(port.publish());
  intake.awake();
  CHECK_FALSE(intake.prepare_sleep());
  CHECK_FALSE(port.publish());
  CHECK(drain(intake).size() == 1);
  CHECK(intake.prepare_sleep());
}

TEST_CASE("no wake-up is lost between sleeping workers and a sleeping loader") {
  Fixture f("wakeup");
  constexpr unsigned kWorkers = 2;
  constexpr int kRounds = 20000;
  const UniqueFd doorbell(::eventfd(0, EFD_CLOEXEC));
  std::atomic<int> lost_by_worker{0};
  std::atomic<unsigned> running{kWorkers};
  DemandIntake intake(f.pool);
  for (unsigned w = 0; w < kWorkers; ++w) intake.attach(w);
  const auto ring = [&] {
    const std::uint64_t one = 1;
    static_cast<void>(::write(doorbell.get(), &one, sizeof one) == sizeof one);
  };
  std::vector<std::thread> workers;
  for (unsigned w = 0; w < kWorkers; ++w)
    workers.emplace_back([&, w] {
      DemandPort port(f.pool, w);
      for (int round = 0; round < kRounds; ++round) {
        const auto ticket = port.post(ExpertKey{static_cast<std::uint32_t>(round % 32)}, 0);
        if (port.publish()) ring();
        while (port.state(*ticket) == DemandState::pending)
          if (!port.wait(kForEver)) ++lost_by_worker;
        port.release(*ticket);
      }
      --running;
      ring();
    });
  int lost_by_loader = 0, served = 0, slept = 0;
  while (running.load() != 0) {
    for (const Demand& demand : drain(intake)) {
      intake.grant(demand.process, demand.ticket, SlotId{0}, 0);
      intake.notify(demand.process);
      ++served;
    }
    if (!intake.prepare_sleep()) continue;
    pollfd bell{.fd = doorbell.get(), .events = POLLIN, .revents = 0};
    if (::poll(&bell, 1, 60000) != 1) ++lost_by_loader;
    std::uint64_t count = 0;
    static_cast<void>(::read(doorbell.get(), &count, sizeof count) == sizeof count);
    intake.awake();
    ++slept;
  }
  for (std::thread& worker : workers) worker.join();
  CHECK(lost_by_worker.load() == 0);
  CHECK(lost_by_loader == 0);
  CHECK(served == static_cast<int>(kWorkers) * kRounds);
  CHECK(slept > 0);
}
