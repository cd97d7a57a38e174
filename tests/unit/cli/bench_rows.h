// Rows of `stoker bench` that nothing had to be measured for.
#pragma once

#include <vector>

#include "cli/bench_report.h"

namespace stoker::cli::test {

inline nlohmann::ordered_json head() {
  return {{"date", "2026-01-02T03:04:05Z"},
          {"version", "1.2.3"},
          {"commit", "abcdef0"},
          {"cpu", "A \"quick\" CPU, 4 GHz"},
          {"cores", 2},
          {"memory_bytes", 1ULL << 33},
          {"model", "tiny"},
          {"layers", 2},
          {"experts", 8},
          {"experts_per_token", 2},
          {"expert_bytes", 10},
          {"ids_from", "ids.txt"},
          {"backend", "cpu"},
          {"pool_slots", 4},
          {"pool_share", 0.25},
          {"budget_bytes", 1000}};
}

/// A test of 10 tokens, one sample for each speed in tokens per second.
inline nlohmann::ordered_json row(std::vector<double> speeds, bool warm = true) {
  std::vector<BenchSample> samples;
  for (const double speed : speeds) {
    BenchSample s{.tokens = 10, .steps = 10, .heads = 10};
    s.seconds = 10 / speed;
    s.uses_pool = 20;
    s.uses_prefetched = 10;
    s.uses_disk = 8;
    s.uses_late_hint = 2;
    s.read_bytes = 200;
    s.stall_demand_seconds = 1;
    s.raw_disk_bandwidth = 200;
    s.raw_memory_bandwidth = 1e6;
    samples.push_back(s);
  }
  const ModelCosts costs{.expert_bytes = 10, .resident_bytes = 100, .head_bytes = 10, .state_bytes = 0};
  return bench_row(head(), {BenchTest::Kind::decode, 10, warm}, 4, samples, costs);
}

}  // namespace stoker::cli::test
