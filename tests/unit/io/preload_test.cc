// Bringing experts back in the background, in virtual time: in order, and out of the way of demands and
// hints.
#include "io-worker/preload.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <memory>

#include "io-worker/loader.h"
#include "io-worker/sim_engine.h"
#include "shm/lease.h"
#include "tests/unit/shm/pool_fixture.h"

using namespace stoker;
using namespace std::chrono_literals;

namespace {

constexpr std::uint32_t kExperts = 256, kExpertBytes = 64 << 10;
constexpr Duration kRead = 1ms;        // what the device needs for one expert
constexpr Duration kOverhead = 200us;  // latency of a read, which overlaps, and the jitter

/// Notes what is submitted.
class Watched final : public IoEngine {
 public:
  explicit Watched(std::unique_ptr<IoEngine> engine) : engine_(std::move(engine)) {}
  std::size_t submit(std::span<const ReadOp> ops) override {
    const std::size_t taken = engine_->submit(ops);
    for (const ReadOp& op : ops.first(taken)) offsets.push_back(op.offset);
    most = std::max(most, engine_->in_flight());
    return taken;
  }
  std::size_t reap(std::span<Completion> out, Duration wait) override { return engine_->reap(out, wait); }
  [[nodiscard]] std::size_t in_flight() const noexcept override { return engine_->in_flight(); }
  [[nodiscard]] std::size_t capacity() const noexcept override { return engine_->capacity(); }
  [[nodiscard]] std::string describe() const override { return engine_->describe(); }

  std::vector<std::uint64_t> offsets;
  std::size_t most = 0;  ///< reads in flight

 private:
  std::unique_ptr<IoEngine> engine_;
};

/// A loader with one worker. Expert i lies at (255 - i) in the file, so that disk order is not key order.
class Rig {
 public:
  explicit Rig(std::uint32_t slots = kExperts, std::vector<SimBadRange> bad = {},
               std::uint32_t experts_in_flight = 4)
      : name_(test::unique_name("preload")), guard_(name_) {
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
    pool_ = std::make_unique<Pool>(test::take(Pool::create_or_adopt(spec)));
    engine = std::make_unique<Watched>(std::make_unique<SimEngine>(kernel_, EngineOptions{.depth = 16}));
    LoaderOptions options;
    options.bytes_in_flight = std::uint64_t{experts_in_flight} * kExpertBytes;
    loader = std::make_unique<Loader>(*pool_, *plan_, files_, *engine, clock_, options);
    attach();
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
  void run(Duration time) {
    for (const Duration end = clock_.now() + time; clock_.now() < end;)
      loader->turn(std::min<Duration>(end - clock_.now(), 100us));
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
  [[nodiscard]] const PoolCounters::Loader& counters() const { return pool_->counters().loader; }
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
  test::NameGuard guard_;
  ManualClock clock_;
  std::vector<ShardFile> files_;
  std::unique_ptr<ExpertPlan> plan_;
  std::shared_ptr<SimKernel> kernel_;
  std::unique_ptr<Pool> pool_;
  std::unique_ptr<Preload> preload_;
  std::unique_ptr<LeaseTable> leases_;
  std::unique_ptr<DemandPort> demands_;

 public:
  std::unique_ptr<Watched> engine;
  std::unique_ptr<Loader> loader;
};

}  // namespace

TEST_CASE("an idle loader brings everything back, in disk order, within the bytes in flight") {
  Rig rig;
  const Preload& preload = rig.preload();
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(preload.restored() == kExperts);
  CHECK(rig.ready() == kExperts);
  CHECK(rig.engine->most == 3);  // of 4: a demand must find room
  CHECK(std::is_sorted(rig.engine->offsets.begin(), rig.engine->offsets.end()));
  CHECK(rig.engine->offsets.size() == kExperts);
  CHECK(rig.counters().warm_planned == kExperts);
  CHECK(rig.counters().warm_fills == kExperts);
  CHECK(rig.counters().hint_fills + rig.counters().demand_fills + rig.counters().hints_wasted == 0);
}

TEST_CASE("chunks go by value, experts in a chunk by place") {
  std::vector<std::vector<Extent>> extents;
  const std::uint32_t count = Preload::kChunk + 10;
  for (std::uint32_t e = 0; e < count; ++e)
    extents.push_back({{FileId{e % 2}, std::uint64_t{count - e} * 4096, 4096, 0}});
  const auto plan = ExpertPlan::from_extents(1, 4096, 4096, extents, std::vector<ExpertParts>(count));
  WarmManifest manifest;
  for (std::uint32_t e = count; e-- > 0;) manifest.push_back({ExpertKey{e}, 1, 0});
  Preload preload(manifest, plan, Preload::kChunk + 4);
  REQUIRE(preload.planned() == Preload::kChunk + 4);  // the last 6 have no room
  std::vector<std::uint32_t> keys;
  while (!preload.all_started()) keys.push_back(preload.take_next().value);
  const std::uint32_t last = count - 1;  // 521, the most valuable; odd ones are in file 1
  CHECK(keys[0] == last - 1);
  CHECK(keys[1] == last - 3);
  CHECK(keys[Preload::kChunk / 2] == last);
  CHECK(keys[Preload::kChunk - 1] == last - (Preload::kChunk - 2));
  CHECK(std::vector(keys.end() - 4, keys.end()) == std::vector<std::uint32_t>{8, 6, 9, 7});
}

TEST_CASE("a demand waits for the reads in flight at most, and none is started before it is served") {
  Duration alone{};
  {
    Rig rig;
    alone = rig.serve(rig.demand(60));
  }
  for (int at = 0; at < 16; ++at) {
    Rig rig;
    rig.preload(60);
    rig.run(5ms + at * 337us);
    const auto in_flight = static_cast<int>(rig.engine->in_flight());
    const std::size_t submitted = rig.engine->offsets.size();
    CHECK(rig.serve(rig.demand(60)) <= alone + in_flight * kRead + kOverhead);
    // The demand's own read was the next one, and the only one.
    REQUIRE(rig.engine->offsets.size() >= submitted + 1);
    CHECK(rig.engine->offsets[submitted] == Rig::offset_of(60));
    CHECK(rig.engine->offsets.size() <= submitted + 2);  // the last turn may have started one after serving
  }
}

TEST_CASE("between demands one expert at a time comes back; after a silence the device is used again") {
  Rig rig;
  const Preload& preload = rig.preload(250);
  rig.run(3ms);
  (void)rig.serve(rig.demand(251));
  while (preload.reading() > 1) rig.run(10us);
  rig.engine->most = 0;
  for (int i = 0; i < 10; ++i) {
    rig.run(2ms);
    CHECK(rig.serve(rig.demand(251)) < kRead);  // resident
  }
  CHECK(rig.engine->most == 1);
  CHECK(preload.restored() > 10);
  CHECK_FALSE(preload.finished());
  rig.run(kPreloadQuiet + 400ms);
  CHECK(rig.engine->most == 3);
  CHECK(preload.finished());
}

TEST_CASE("hints go first") {
  Rig rig;
  rig.preload(50);
  rig.run(3ms);
  std::vector<LoaderHint> hints(3);
  for (std::uint32_t i = 0; i < 3; ++i) {
    hints[i].expert = ExpertKey{55 + i};
    hints[i].step = 1;
  }
  rig.loader->push_hints(hints);
  const std::size_t submitted = rig.engine->offsets.size();
  rig.run(10ms);
  for (std::size_t i = 0; i < hints.size(); ++i)
    CHECK(rig.engine->offsets[submitted + i] == Rig::offset_of(hints[i].expert.value));
  CHECK(rig.counters().hint_fills == 3);
}

TEST_CASE("nothing is evicted for it") {
  Rig rig(8);
  const Preload& preload = rig.preload(8);
  for (std::uint32_t e = 40; e < 44; ++e) (void)rig.serve(rig.demand(e));
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(rig.ready() == 8);
  CHECK(rig.counters().evictions == 0);
  CHECK(preload.restored() < 8);
}

TEST_CASE("a demand for an expert on its way joins the read") {
  Rig rig;
  const Preload& preload = rig.preload();
  rig.run(kRead * 5 / 2);
  const std::uint32_t coming =
      kExperts - 1 - static_cast<std::uint32_t>(rig.engine->offsets.back() / kExpertBytes);
  REQUIRE(preload.reading() > 0);
  CHECK(rig.serve(rig.demand(coming)) <= 3 * kRead + kOverhead);
  rig.run(kPreloadQuiet + 400ms);
  CHECK(preload.finished());
  CHECK(preload.restored() == kExperts);
  CHECK(rig.engine->offsets.size() == kExperts);  // each was read once
  CHECK(rig.counters().hints_promoted == 0);
  CHECK(rig.counters().demand_fills == 1);
}

TEST_CASE("an expert that cannot be read is left out") {
  Rig rig(kExperts, {{FileId{0}, Rig::offset_of(7), 10, 0}});
  const Preload& preload = rig.preload();
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(preload.restored() == kExperts - 1);
  CHECK(rig.ready() == kExperts - 1);
}

TEST_CASE("with room for one expert in flight it works, one at a time") {
  Rig rig(kExperts, {}, 1);
  const Preload& preload = rig.preload();
  rig.run(400ms);
  CHECK(preload.finished());
  CHECK(rig.engine->most == 1);
}
