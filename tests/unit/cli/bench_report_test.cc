#include <catch2/catch.hpp>

#include "tests/unit/cli/bench_rows.h"

using namespace stoker;
using namespace stoker::cli;
using Json = nlohmann::ordered_json;

namespace {

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

/// Cells of a line of CSV with quotes as RFC 4180 has them.
std::size_t csv_cells(const std::string& line) {
  std::size_t cells = 1;
  bool quoted = false;
  for (const char c : line) {
    if (c == '"') quoted = !quoted;
    if (c == ',' && !quoted) ++cells;
  }
  CHECK_FALSE(quoted);
  return cells;
}

}  // namespace

TEST_CASE("a row holds what was measured, per token") {
  const Json row = test::row({4, 5, 6});
  CHECK(row["test"] == "tg10");
  CHECK(row["pool_state"] == "warm");
  CHECK(row["warm_up_tokens"] == 4);
  CHECK(test::row({1}, false)["warm_up_tokens"] == 0);
  CHECK(row["repetitions"] == 3);
  CHECK(row["tokens_per_second"]["mean"].get<double>() == Approx(5));
  CHECK(row["tokens_per_second"]["stddev"].get<double>() == Approx(1));
  CHECK(row["tokens_per_second"]["samples"].size() == 3);
  CHECK(row["bytes_per_token"]["disk"]["mean"] == 20.0);
  CHECK(row["bytes_per_token"]["pool"]["mean"] == 20.0);
  CHECK(row["bytes_per_token"]["pool_prefetched"]["mean"] == 10.0);
  CHECK(row["bytes_per_token"]["memory"]["mean"] == 100.0 + 10 + 4 * 10);
  CHECK(row["hit_rate"]["pool"]["mean"] == 0.5);
  CHECK(row["hit_rate"]["disk_late_hint"]["mean"].get<double>() == Approx(0.05));
  CHECK(row["stall_seconds_per_token"]["demand"]["mean"].get<double>() == Approx(0.1));
  CHECK(row["limit"]["by"] == "disk");
  CHECK(row["limit"]["percent"]["median"].get<double>() == Approx(50));  // 1 s of 2
  CHECK(row["limit"]["percent"]["max"].get<double>() == Approx(60));
}

TEST_CASE("json is an array of rows, jsonl a row per line") {
  const Rows rows{test::row({4, 5}), test::row({1, 2}, false)};
  const Json all = Json::parse(bench_text(rows, BenchFormat::json));
  const auto lines = lines_of(bench_text(rows, BenchFormat::jsonl));
  REQUIRE(all.size() == 2);
  REQUIRE(lines.size() == 2);
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(all[i] == rows[i]);
    CHECK(Json::parse(lines[i]) == rows[i]);
  }
}

TEST_CASE("csv: one head, the same columns in all rows, quotes doubled") {
  const auto lines = lines_of(bench_text({test::row({4, 5}), test::row({1, 2}, false)}, BenchFormat::csv));
  REQUIRE(lines.size() == 3);
  CHECK_THAT(lines[0], Catch::Matchers::Contains("tokens_per_second_mean,tokens_per_second_stddev"));
  CHECK_THAT(lines[1], Catch::Matchers::Contains("\"A \"\"quick\"\" CPU, 4 GHz\""));
  for (const std::string& line : lines) CHECK(csv_cells(line) == csv_cells(lines[0]));
}

TEST_CASE("md: a line on machine and model, then a table of even columns") {
  const auto lines = lines_of(bench_text({test::row({4, 5}), test::row({1, 2}, false)}, BenchFormat::md));
  REQUIRE(lines.size() == 8);
  CHECK_THAT(lines[0], Catch::Matchers::StartsWith("stoker 1.2.3 (abcdef0), 2026-01-02"));
  CHECK_THAT(lines[2], Catch::Matchers::Contains("2 layers, top 2 of 8 experts"));
  const auto bars = std::count(lines[4].begin(), lines[4].end(), '|');
  for (std::size_t i = 5; i < 8; ++i) CHECK(std::count(lines[i].begin(), lines[i].end(), '|') == bars);
  CHECK_THAT(lines[6], Catch::Matchers::Contains("4.50 ± 0.71"));
}

TEST_CASE("formats have names") {
  CHECK(parse_bench_format("jsonl") == BenchFormat::jsonl);
  CHECK(parse_bench_format("xml").error().code == Errc::invalid);
}
