// One repetition of one test of `stoker bench`: yardsticks, a fresh private stack, warm-up, the measured
// request, and the counters before and after it.
#pragma once

#include <string>
#include <vector>

#include "cli/bandwidth.h"
#include "cli/bench_figures.h"
#include "cli/session.h"

namespace stoker::cli {

/// What is the same for all repetitions.
struct BenchPlan {
  SessionOptions session;
  std::vector<std::uint32_t> ids;  ///< warm-up, then what is measured
  std::uint32_t warm_up = 0;
  unsigned threads = 1;  ///< of the worker; as many read memory for the yardstick
  DiskProbe disk;
};

/// What the first stack that was started says of itself.
struct StackFacts {
  std::string backend;  ///< "" until then
  std::uint32_t chunk = 1;
  std::uint64_t pool_slots = 0, pool_bytes = 0, weights_bytes = 0;
  bool disk_direct = true;
};

/// Ids that a test takes: the request's last one is only predicted.
inline std::uint64_t ids_needed(const BenchPlan& plan, const BenchTest& test) {
  return std::uint64_t{plan.warm_up} + test.tokens + 1;
}

class BenchRunner {
 public:
  BenchRunner(const BenchPlan& plan, Interrupts& interrupts, Context& context)
      : plan_(plan), interrupts_(interrupts), context_(context) {}
  tl::expected<BenchSample, ExitReport> measure(const BenchTest& test);
  [[nodiscard]] const StackFacts& facts() const { return facts_; }

 private:
  tl::expected<BenchSample, ExitReport> measure_on(Session& session, const BenchTest& test,
                                                   double memory_bandwidth);
  tl::expected<wire::Stats, ExitReport> request(Session& session, std::size_t first, std::uint32_t prompt,
                                                std::uint32_t generated);
  tl::expected<nlohmann::ordered_json, ExitReport> status(Session& session);

  const BenchPlan& plan_;
  Interrupts& interrupts_;
  Context& context_;
  StackFacts facts_;
  unsigned requests_ = 0;
};

}  // namespace stoker::cli
