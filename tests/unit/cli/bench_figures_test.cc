#include <catch2/catch.hpp>

#include "cli/bandwidth.h"
#include "cli/bench_figures.h"
#include "cli/memory_bandwidth.h"
#include "tests/unit/checkpoint/scratch.h"

using namespace stoker;
using namespace stoker::cli;

namespace {

constexpr ModelCosts kCosts{.expert_bytes = 10, .resident_bytes = 1000, .head_bytes = 100, .state_bytes = 50};

BenchSample sample_of(const BenchTest& test, std::uint64_t uses, std::uint64_t read_bytes) {
  BenchSample s{.tokens = test.tokens, .steps = test.steps(256), .heads = test.heads()};
  s.seconds = 1;
  s.uses_pool = uses;
  s.read_bytes = read_bytes;
  s.raw_disk_bandwidth = 1000;
  s.raw_memory_bandwidth = 100000;
  return s;
}

}  // namespace

TEST_CASE("tests have llama-bench's names, and know their steps") {
  const BenchTest pp{BenchTest::Kind::prefill, 513, false}, tg{BenchTest::Kind::decode, 64, true};
  CHECK(pp.name() == "pp513");
  CHECK(pp.steps(256) == 3);
  CHECK(pp.steps(513) == 1);
  CHECK(pp.heads() == 1);
  CHECK(tg.name() == "tg64");
  CHECK(tg.steps(256) == 64);
  CHECK(tg.heads() == 64);
}

TEST_CASE("bytes on the device: weights per step, head per row of logits, experts per use") {
  const BenchTest tg{BenchTest::Kind::decode, 4, false}, pp{BenchTest::Kind::prefill, 512, false};
  CHECK(device_bytes(sample_of(tg, 40, 0), kCosts) == 4 * 1100 + 4 * 100 + 400);
  CHECK(device_bytes(sample_of(pp, 40, 0), kCosts) == 2 * 1100 + 100 + 400);
}

TEST_CASE("the limit is the slower resource; reads in vain are not needed work") {
  const BenchTest tg{BenchTest::Kind::decode, 4, false};
  BenchSample s = sample_of(tg, 40, 300);
  BenchLimit limit = limit_of(s, kCosts);
  CHECK(limit.disk_seconds == Approx(0.3));
  CHECK(limit.memory_seconds == Approx(0.052));
  CHECK(limit.by() == std::string("disk"));
  CHECK(limit.seconds() == Approx(0.3));
  s.wasted_bytes = 290;
  limit = limit_of(s, kCosts);
  CHECK(limit.disk_seconds == Approx(0.01));
  CHECK(limit.by() == std::string("memory"));
  CHECK(limit.seconds() == Approx(0.052));
  s.wasted_bytes = 1000;  // read by hints before the test, thrown away in it
  CHECK(limit_of(s, kCosts).disk_seconds == 0);
}

TEST_CASE("a GPU has four limits: disk, its memory, PCIe and the CPU lane") {
  const BenchTest tg{BenchTest::Kind::decode, 4, false};
  BenchSample s = sample_of(tg, 0, 300);
  s.uses_vram = 20;
  s.uses_pool = 20;
  s.uses_copied = 12;
  s.uses_on_cpu = 8;
  s.raw_copy_bandwidth = 600;
  s.raw_cpu_lane_bandwidth = 200;
  // Weights, state and head as ever; hits are read once, copies written and read, the CPU lane is elsewhere.
  CHECK(device_bytes(s, kCosts) == 4 * 1100 + 4 * 100 + 200 + 2 * 120);
  BenchLimit limit = limit_of(s, kCosts);
  CHECK(limit.memory_seconds == Approx(0.0524));
  CHECK(limit.copy_seconds == Approx(0.2));
  CHECK(limit.cpu_lane_seconds == Approx(0.4));
  CHECK(limit.by() == std::string("cpu_lane"));
  s.uses_copied = 30;
  limit = limit_of(s, kCosts);
  CHECK(limit.by() == std::string("pcie"));
  CHECK(limit.seconds() == Approx(0.5));
}

TEST_CASE("spread of repetitions") {
  const Spread s = spread_of({4, 1, 3, 2});
  CHECK(s.mean == 2.5);
  CHECK(s.stddev == Approx(1.29099));
  CHECK(s.median == 2.5);
  CHECK(s.min == 1);
  CHECK(s.max == 4);
  CHECK(spread_of({7, 9, 8}).median == 8);
  CHECK(spread_of({5}).stddev == 0);
}

TEST_CASE("costs of a checkpoint are its tensors: nothing is counted twice or left out") {
  const test::ScratchDir scratch;
  const auto spec = test::mini_spec(scratch / "model");
  REQUIRE(synthesize(spec));
  const auto checkpoint = Checkpoint::open(scratch / "model");
  REQUIRE(checkpoint);
  const auto costs = ModelCosts::of(*checkpoint);
  REQUIRE(costs);
  std::uint64_t all = 0, routed = 0;
  for (const auto& [name, tensor] : checkpoint->tensors()) {
    all += tensor.info.bytes;
    if (name.find(".mlp.experts.") != std::string::npos) routed += tensor.info.bytes;
  }
  const std::uint64_t embedding = checkpoint->find("model.embed_tokens.weight")->info.bytes;
  CHECK(costs->head_bytes == checkpoint->find("lm_head.weight")->info.bytes);
  CHECK(costs->resident_bytes == all - routed - embedding - costs->head_bytes);
  const ModelConfig& c = checkpoint->config();
  CHECK(costs->state_bytes == 4ULL * c.linear_value_heads * c.linear_key_dim * c.linear_value_dim);
}

TEST_CASE("the report of raw_read: its best depth") {
  const auto best = parse_raw_read(R"({"direct": true, "points": [{"depth": 1, "gb_per_second": 1.5},
      {"depth": 2, "gb_per_second": 2.5}, {"depth": 4, "gb_per_second": 2.0}]})");
  REQUIRE(best);
  CHECK(best->bytes_per_second == Approx(2.5e9));
  CHECK(best->depth == 2);
  CHECK(best->direct);
  for (const char* bad : {"", "raw_read: no such file", "{}", R"({"direct": true, "points": []})",
                          R"({"direct": 1, "points": [{"depth": 1, "gb_per_second": 1.5}]})"})
    CHECK_FALSE(parse_raw_read(bad));
}

TEST_CASE("memory is read by threads that have ended") {
  const SteadyClock clock;
  const auto rate = measure_memory(2, clock);
  REQUIRE(rate);
  CHECK(*rate > 0);
}
