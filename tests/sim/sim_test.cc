// Thousands of seeded histories of the loader and its workers; see world.h. Without arguments: the ctest
// amount. `sim_test --seed N` replays one seed; `--seeds COUNT` runs more.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/sim/world.h"

namespace {

using stoker::sim::World;
using stoker::sim::WorldOptions;
using stoker::sim::WorldReport;

struct Totals {
  std::uint64_t leases = 0, failures = 0, loader_deaths = 0, worker_deaths = 0, late_landings = 0,
                short_reads = 0, io_errors = 0, bit_flips = 0, misdirected = 0, preloads = 0;
  void add(const WorldReport& r) {
    leases += r.leases;
    failures += r.failures;
    loader_deaths += r.loader_deaths;
    worker_deaths += r.worker_deaths;
    late_landings += r.faults.late_landings;
    short_reads += r.faults.short_aligned + r.faults.short_unaligned;
    io_errors += r.faults.io_error;
    bit_flips += r.faults.bit_flip;
    misdirected += r.faults.misdirected;
    preloads += r.preloads;
  }
};

bool run_seeds(std::uint64_t first, std::uint64_t count, Totals& totals) {
  for (std::uint64_t seed = first; seed < first + count; ++seed) {
    World world(WorldOptions{.seed = seed, .checksums = seed % 2 == 0});
    const WorldReport report = world.run();
    totals.add(report);
    if (!report.violation.empty()) {
      std::printf("FAILED: %s; replay with --seed %llu\n", report.violation.c_str(),
                  static_cast<unsigned long long>(seed));
      return false;
    }
  }
  return true;
}

/// The canary: with the quarantine left out, a late write must be noticed within the seeds.
bool planted_bug_is_found(std::uint64_t seeds) {
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    World world(WorldOptions{.seed = seed, .skip_quarantine = true});
    const WorldReport report = world.run();
    if (report.violation.empty()) continue;
    std::printf("planted bug (no quarantine) found at seed %llu: %s\n", static_cast<unsigned long long>(seed),
                report.violation.c_str());
    return true;
  }
  std::printf("FAILED: the planted bug (no quarantine) was not found in %llu seeds\n",
              static_cast<unsigned long long>(seeds));
  return false;
}

}  // namespace

int main(int argc, char** argv) {
  std::uint64_t first = 1, count = 3000;
  if (argc == 3 && std::strcmp(argv[1], "--seed") == 0) {
    first = std::strtoull(argv[2], nullptr, 10);
    count = 1;
  } else if (argc == 3 && std::strcmp(argv[1], "--seeds") == 0) {
    count = std::strtoull(argv[2], nullptr, 10);
  } else if (argc != 1) {
    std::fprintf(stderr, "usage: sim_test [--seed N | --seeds COUNT]\n");
    return 2;
  }
  Totals t;
  if (!run_seeds(first, count, t)) return 1;
  std::printf(
      "%llu seeds: %llu leases, %llu failed demands, %llu loader deaths, %llu worker deaths, "
      "%llu late landings, %llu short reads, %llu EIO, %llu bit flips, %llu misdirected reads, %llu "
      "preloads\n",
      static_cast<unsigned long long>(count), static_cast<unsigned long long>(t.leases),
      static_cast<unsigned long long>(t.failures), static_cast<unsigned long long>(t.loader_deaths),
      static_cast<unsigned long long>(t.worker_deaths), static_cast<unsigned long long>(t.late_landings),
      static_cast<unsigned long long>(t.short_reads), static_cast<unsigned long long>(t.io_errors),
      static_cast<unsigned long long>(t.bit_flips), static_cast<unsigned long long>(t.misdirected),
      static_cast<unsigned long long>(t.preloads));
  if (count == 1) return 0;
  if (t.leases == 0 || t.failures == 0 || t.late_landings == 0 || t.bit_flips == 0 || t.preloads == 0) {
    std::printf("FAILED: the faults that this test is about did not happen\n");
    return 1;
  }
  return planted_bug_is_found(2000) ? 0 : 1;
}
