#include <sched.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <set>
#include <thread>
#include <vector>

#include "gpu-worker/cpu/thread_pool.h"
#include "shm/base/cpus.h"

using stoker::ThreadPool;
using stoker::usable_cpus;

namespace {

/// Where each thread of the pool ran a chunk; every thread takes part.
std::vector<std::set<int>> cpus_of(ThreadPool& pool) {
  std::vector<std::set<int>> seen(pool.threads());
  for (int round = 0; round < 20; ++round) {
    std::atomic<unsigned> arrived{0};
    pool.run(pool.threads(), 1, [&](std::size_t, std::size_t, unsigned thread) {
      seen[thread].insert(::sched_getcpu());
      ++arrived;
      while (arrived < pool.threads()) std::this_thread::yield();  // so that nobody takes two
    });
  }
  return seen;
}

}  // namespace

TEST_CASE("pinned threads have a CPU each, and keep it") {
  // Of its own thread: what it starts later would inherit the CPU.
  std::thread([] {
    ThreadPool pool(usable_cpus());
    REQUIRE(pool.pin());
    CHECK(usable_cpus() == 1);
    std::set<int> all;
    for (const std::set<int>& cpus : cpus_of(pool)) {
      CHECK(cpus.size() == 1);
      all.insert(cpus.begin(), cpus.end());
    }
    CHECK(all.size() == pool.threads());
  }).join();
}

TEST_CASE("with another number of threads than CPUs nothing is pinned") {
  const unsigned before = usable_cpus();
  ThreadPool pool(before + 1);
  CHECK_FALSE(pool.pin());
  CHECK(usable_cpus() == before);
}
