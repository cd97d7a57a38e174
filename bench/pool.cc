// What a pool hit costs: lease, record the use, release; random experts of a pool with the full-size model's
// tables (24,576 experts, 8,192 slots; payload shrunk to a page, it is not touched).
//   bench_pool [--benchmark_filter=...]      goal: below 200 ns
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "shm/lease.h"
#include "shm/pool.h"
#include "shm/usage.h"

namespace {

using stoker::ExpertKey;
using stoker::SlotId;
using stoker::SlotState;
using stoker::SlotWord;

constexpr std::uint32_t kLayers = 48, kExperts = 512, kSlots = 8192;

class FullPool {
 public:
  FullPool() : name_("stoker-bench." + std::to_string(::getpid())) {
    stoker::PoolSpec spec;
    spec.name = name_;
    spec.slot_bytes = 4096;
    spec.slot_count = kSlots;
    spec.layers = kLayers;
    spec.experts_per_layer = kExperts;
    auto made = stoker::Pool::create_or_adopt(spec);
    if (!made) std::abort();
    pool_.emplace(*std::move(made));
    for (std::uint32_t i = 0; i < kSlots; ++i) fill(i, i * 3);  // every third expert is resident
  }
  ~FullPool() { stoker::Pool::unlink(name_); }
  FullPool(const FullPool&) = delete;
  FullPool& operator=(const FullPool&) = delete;
  stoker::Pool& pool() { return *pool_; }

 private:
  void fill(std::uint32_t slot, std::uint32_t expert) {
    stoker::SlotControl& control = pool_->slots()[slot];
    const auto epoch = static_cast<std::uint8_t>(pool_->header().epoch.load());
    (void)update(control, [&](SlotWord w) -> std::optional<SlotWord> {
      return SlotWord{SlotState::filling, epoch, 0, w.generation + 1};
    });
    control.expert.store(expert);
    pool_->experts()[expert].slot.store(slot);
    (void)update(control, [](SlotWord w) -> std::optional<SlotWord> {
      w.state = SlotState::ready;
      return w;
    });
  }
  std::string name_;
  std::optional<stoker::Pool> pool_;
};

FullPool& full_pool() {
  static FullPool pool;
  return pool;
}

std::vector<std::uint32_t> random_experts(bool resident) {
  std::mt19937 engine(1);
  std::vector<std::uint32_t> experts(4096);
  for (std::uint32_t& expert : experts)
    expert = static_cast<std::uint32_t>(engine() % kSlots * 3 + (resident ? 0 : 1));
  return experts;
}

void hit(benchmark::State& state) {
  stoker::Pool& pool = full_pool().pool();
  stoker::LeaseTable leases(pool, 0);
  const auto experts = random_experts(true);
  std::size_t i = 0;
  for (auto _ : state) {
    const ExpertKey key{experts[++i % experts.size()]};
    stoker::record_use(pool.experts()[key.value].usage, static_cast<std::uint32_t>(i));
    const auto lease = leases.try_lease(key);
    if (!lease) {
      state.SkipWithError("not resident");
      break;
    }
    benchmark::DoNotOptimize(leases.release(lease->slot));
  }
}

void miss(benchmark::State& state) {
  stoker::LeaseTable leases(full_pool().pool(), 0);
  const auto experts = random_experts(false);
  std::size_t i = 0;
  for (auto _ : state) benchmark::DoNotOptimize(leases.try_lease(ExpertKey{experts[++i % experts.size()]}));
}

}  // namespace

BENCHMARK(hit);
BENCHMARK(miss);
BENCHMARK_MAIN();
