// What `stoker bench` is asked for, and everything that is known before the first stack is started. What can
// be refused is refused here, before minutes have been spent.
#pragma once

#include <string>
#include <vector>

#include "cli/bench_report.h"
#include "cli/bench_run.h"
#include "cli/context.h"

namespace stoker::cli {

struct BenchOptions {
  SessionOptions session;
  std::vector<std::uint32_t> prompts = {512}, decodes = {64};
  std::uint32_t repetitions = 5, warm_up = 96;
  std::vector<std::string> states = {"cold", "warm"};
  std::string tokens_file, output = "md", history, compare;
  bool comparing = false;
  double raw_seconds = 0.5;
  std::uint64_t seed = 1;
};

struct Bench {
  BenchPlan plan;
  std::vector<BenchTest> tests;
  ModelCosts costs;
  nlohmann::ordered_json head;  ///< what all rows have in common
  Rows history;
  BenchFormat format = BenchFormat::md;
};

tl::expected<Bench, ExitReport> prepare_bench(const BenchOptions& options, Context& context);

}  // namespace stoker::cli
