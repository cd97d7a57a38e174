#include <unistd.h>

#include <catch2/catch.hpp>

#include "cli/machine.h"
#include "shm/base/cpus.h"

using namespace stoker;
using namespace stoker::cli;

TEST_CASE("the peak of memory includes what has been given back") {
  const SteadyClock clock;
  PeakMemory peak({::getpid()}, clock);
  const std::uint64_t before = memory_of(::getpid()).proportional;
  REQUIRE(before > 0);
  std::vector<char> block(64 << 20, 1);
  CHECK(peak.stop() >= before + block.size() / 2);
  CHECK(peak.stop() == peak.stop());
  CHECK(memory_of(0).proportional == 0);
}

TEST_CASE("a process is among its siblings") {
  const auto pids = siblings_of(::getpid());
  CHECK(std::find(pids.begin(), pids.end(), ::getpid()) != pids.end());
  CHECK(usable_cpus() >= 1);
  CHECK_FALSE(cpu_model().empty());
}
