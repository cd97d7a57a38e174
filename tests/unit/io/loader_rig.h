// A loader with one worker in virtual time: the production loop over a simulated disk, turn by turn.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <memory>
#include <utility>
#include <vector>

#include "io-worker/loader.h"
#include "io-worker/sim_engine.h"
#include "shm/lease.h"
#include "shm/usage.h"
#include "tests/unit/shm/pool_fixture.h"

namespace stoker::test {

using namespace std::chrono_literals;

inline constexpr std::uint32_t kExperts = 256, kExpertBytes = 64 << 10;
inline constexpr Duration kRead = 1ms;        // what the device needs for one expert
inline constexpr Duration kOverhead = 200us;  // latency of a read, which overlaps, and the jitter

/// Notes what is submitted.
class Watched final : public IoEngine {
 public:
  explicit Watched(std::unique_ptr<IoEngine> engine) : engine_(std::move(engine)) {}
  std::size_t submit(std::span<const ReadOp> ops) override {
    const std::size_t taken = engine_->submit(ops);
    ++submissions;
    for (const ReadOp& op : ops.first(taken)) offsets.push_back(op.offset);
    most = std::max(most, engine_->in_flight());
    return taken;
  }
  std::size_t reap(std::span<Completion> out, Duration wait) override {
    last_wait = wait;
    return engine_->reap(out, wait);
  }
  [[nodiscard]] std::size_t in_flight() const noexcept override { return engine_->in_flight(); }
  [[nodiscard]] std::size_t capacity() const noexcept override { return engine_->capacity(); }
  [[nodiscard]] std::string describe() const override { return engine_->describe(); }

  std::vector<std::uint64_t> offsets;
  std::size_t submissions = 0;
  std::size_t most = 0;  ///< reads in flight
  Duration last_wait{};

 private:
  std::unique_ptr<IoEngine> engine_;
};

/// A loader with one worker. Expert i lies at (255 - i) in the file, so that disk order is not key order.
class Rig {
 public:
  explicit Rig(std::uint32_t slots = kExperts, std::vector<SimBadRange> bad = {},
               std::uint32_t experts_in_flight = 4, Duration spin = {})
      : name_(unique_name("preload")), guard_(name_) {
    std::vector<std::vector<Extent>> extents;
    for (std::uint32_t e = 0; e < kExperts; ++e)
      extents.push_back({{FileId{0}, offset_of(e), kExpertBytes, 0}});
    plan_ = std::make_unique<ExpertPlan>(
        ExpertPlan::from_extents(2, kExpertBytes, kExpertBytes, extents, std::vector<ExpertParts>(kExperts)));
    SimOptions sim;
    sim.bytes_per_second = kExpertBytes / seconds(kRead);
    sim.bad_ranges = std::move(bad);
    files_.push_back({.path = "/sim/shard", .bytes = std::uint64_t{kExperts} * kExpertBytes});
    kernel_ = std::make_shared<SimKernel>(
        clock_, std::vector{sim_file("/sim/shard", std::vector<std::byte>(files_[0].bytes))}, sim);
    PoolSpec spec;
    spec.name = name_;
    spec.slot_bytes = kExpertBytes;
    spec.slot_count = slots;
    spec.layers = 2;
    spec.experts_per_layer = kExperts / 2;
    spec.huge_pages = HugePages::off;
    pool_ = std::make_unique<Pool>(take(Pool::create_or_adopt(spec)));
    engine = std::make_unique<Watched>(std::make_unique<SimEngine>(kernel_, EngineOptions{.depth = 16}));
    options_.spin = spin;
    options_.bytes_in_flight = std::uint64_t{experts_in_flight} * kExpertBytes;
    restart();
    attach();
  }
  /// A loader that finds what the one before it left.
  void restart() {
    loader.reset();
    loader = std::make_unique<Loader>(*pool_, *plan_, files_, *engine, clock_, options_);
  }

  static std::uint64_t offset_of(std::uint32_t expert) {
    return std::uint64_t{kExperts - 1 - expert} * kExpertBytes;
  }
  Preload& preload(std::uint32_t count = kExperts) {
    WarmManifest manifest;
    for (std::uint32_t e = 0; e < count; ++e) manifest.push_back({ExpertKey{e}, 1, 0});
    preload_ = std::make_unique<Preload>(manifest, *plan_, pool_->slot_count());
    loader->set_preload(*preload_);
    return *preload_;
  }
  void pass(Duration time) { clock_.advance(time); }
  void run(Duration time) {
    for (const Duration end = clock_.now() + time; clock_.now() < end;) {
      loader->turn(std::min<Duration>(end - clock_.now(), 100us));
      if (options_.spin > 0s) pass(1us);  // virtual time stands still in turns that do not wait
    }
  }
  DemandTicket demand(std::uint32_t expert) {
    const auto ticket = demands_->post(ExpertKey{expert}, 0);
    REQUIRE(ticket);
    (void)demands_->publish();
    return *ticket;
  }
  /// Until it is granted; the lease is given back.
  Duration serve(DemandTicket ticket) {
    const Duration began = clock_.now();
    while (demands_->state(ticket) == DemandState::pending) run(10us);
    const DemandResult result = demands_->poll(ticket);
    demands_->release(ticket);
    REQUIRE(result.state == DemandState::granted);
    REQUIRE(leases_->adopt(result.slot));
    (void)leases_->release(result.slot);
    return clock_.now() - began;
  }
  /// The worker keeps a lease on it.
  void hold(std::uint32_t expert) { REQUIRE(leases_->try_lease(ExpertKey{expert})); }
  [[nodiscard]] std::uint32_t leased() const { return census(*pool_).leased; }
  [[nodiscard]] ProcessEntry& worker() { return pool_->process(0); }
  [[nodiscard]] const PoolCounters::Loader& counters() const { return pool_->counters().loader; }
  [[nodiscard]] bool resident(std::uint32_t expert) const {
    return pool_->experts()[expert].slot.load() != kNone;
  }
  /// As a worker does when it leases the expert.
  void use(std::uint32_t expert) { record_use(pool_->experts()[expert].usage, 1); }
  [[nodiscard]] std::uint32_t ready() const {
    return census(*pool_).by_state[static_cast<unsigned>(SlotState::ready)];
  }

 private:
  void attach() {
    ProcessEntry& entry = pool_->process(0);
    entry.pid.store(static_cast<std::uint32_t>(::getpid()));
    entry.start_ticks.store(process_start_ticks(static_cast<std::uint32_t>(::getpid())));
    entry.state.store(static_cast<std::uint32_t>(ProcessState::attached));
    loader->add_process(0);
    leases_ = std::make_unique<LeaseTable>(*pool_, 0);
    demands_ = std::make_unique<DemandPort>(*pool_, 0);
  }
  std::string name_;
  NameGuard guard_;
  ManualClock clock_;
  std::vector<ShardFile> files_;
  std::unique_ptr<ExpertPlan> plan_;
  std::shared_ptr<SimKernel> kernel_;
  std::unique_ptr<Pool> pool_;
  LoaderOptions options_;
  std::unique_ptr<Preload> preload_;
  std::unique_ptr<LeaseTable> leases_;
  std::unique_ptr<DemandPort> demands_;

 public:
  std::unique_ptr<Watched> engine;
  std::unique_ptr<Loader> loader;
};

}  // namespace stoker::test
