// Rows of `stoker bench` as JSON objects that stand alone, and the four ways to print them. The field names
// are documented in docs/cli.md; histories hold them, so they do not change.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/bench_figures.h"
#include "shm/base/result.h"

namespace stoker::cli {

using Rows = std::vector<nlohmann::ordered_json>;

/// One row: `head` (machine, model, stack: the same in all rows), then what was measured. `samples` is not
/// empty.
nlohmann::ordered_json bench_row(const nlohmann::ordered_json& head, const BenchTest& test,
                                 std::uint32_t warm_up, const std::vector<BenchSample>& samples,
                                 const ModelCosts& costs);

enum class BenchFormat { md, csv, json, jsonl };
Result<BenchFormat> parse_bench_format(const std::string& name);

/// `rows` is not empty.
std::string bench_text(const Rows& rows, BenchFormat format);

}  // namespace stoker::cli
