// Device memory in front of the pool: who finds what, what is promoted, what an event looked like.
#include "trace/tiered_replay.h"

#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>
#include <initializer_list>
#include <map>
#include <random>
#include <vector>

#include "tests/unit/trace/toy_trace.h"
#include "trace/foreign.h"
#include "trace/replay.h"

using namespace stoker;

namespace {

/// One layer; every list is a step.
Trace trace_of(std::uint32_t experts, std::initializer_list<std::vector<std::uint16_t>> steps) {
  Trace trace;
  trace.shape = {.layers = 1, .experts = experts, .top_k = 2, .candidates = 0, .expert_bytes = 1};
  for (const auto& chosen : steps) {
    TraceToken token = TraceToken::sized(trace.shape);
    token.step = trace.tokens.size();
    token.chosen = chosen;
    trace.tokens.push_back(token);
  }
  return trace;
}

Trace random_trace(std::uint32_t layers, std::uint32_t experts, std::uint32_t tokens) {
  std::mt19937 engine(3);
  Trace trace;
  trace.shape = {.layers = layers, .experts = experts, .top_k = 2, .candidates = 0, .expert_bytes = 1};
  for (std::uint32_t t = 0; t < tokens; ++t) {
    TraceToken token = TraceToken::sized(trace.shape);
    token.step = t;
    for (std::size_t i = 0; i < token.chosen.size(); i += 2) {
      const auto first = std::min(engine() % experts, engine() % experts);
      token.chosen[i] = static_cast<std::uint16_t>(first);
      token.chosen[i + 1] = static_cast<std::uint16_t>((first + 1 + engine() % (experts - 1)) % experts);
    }
    trace.tokens.push_back(token);
  }
  return trace;
}

}  // namespace

TEST_CASE("promoting everything is the event-atomic LRU: 12 hits in the toy") {
  const auto trace = parse_any_trace(test::kToy);
  REQUIRE(trace);
  const TieredReplayResult r = tiered_replay(*trace, {.vram_slots = 6, .pool_slots = 6});
  CHECK(r.vram == 12);
  CHECK(r.pool + r.disk == 18);
  CHECK(r.promoted == 18);
  CHECK((r.tokens == 5 && r.steps == 5));
}

TEST_CASE("without device memory it is the pool alone") {
  const Trace trace = random_trace(4, 32, 300);
  const TieredReplayResult tiers = tiered_replay(trace, {.vram_slots = 0, .pool_slots = 40, .skip = 20});
  const ReplayResult pool = replay(trace, {.policy = ReplayPolicy::stoker, .slots = 40, .skip = 20});
  CHECK((tiers.vram == 0 && tiers.promoted == 0));
  CHECK(tiers.uses() == pool.hits + pool.misses);
  CHECK(tiers.compulsory == pool.compulsory);
  // Two implementations of the same loader: they differ in when slots are free.
  CHECK(std::abs(static_cast<double>(tiers.pool) - static_cast<double>(pool.hits)) <
        0.02 * static_cast<double>(tiers.uses()));
}

TEST_CASE("a pool with room for everything begins full") {
  const Trace trace = random_trace(4, 32, 100);
  const TieredReplayResult r = tiered_replay(trace, {.vram_slots = 16, .pool_slots = 128});
  CHECK((r.disk == 0 && r.compulsory == 0));
  CHECK((r.vram > 0 && r.pool > 0));
}

TEST_CASE("events: where their experts were, and what was promoted") {
  const Trace trace = trace_of(8, {{0, 1}, {0, 2}, {2, 3}, {2, 3}});
  const TieredReplayResult r =
      tiered_replay(trace, {.vram_slots = 2, .pool_slots = 4, .skip = 1, .vram = {.second_touch_within = 8}});
  // {0, 2}: 0 is there, 2 is read. {2, 3}: 2 comes the second time and goes where 1 was, 3 is read.
  // {2, 3}: 3 takes the slot of 0.
  const std::map<EventTiers, std::uint64_t> events = {
      {{.vram = 1, .pool = 0, .disk = 1, .copied = 1, .promoted = 0}, 1},
      {{.vram = 0, .pool = 1, .disk = 1, .copied = 2, .promoted = 1}, 1},
      {{.vram = 1, .pool = 1, .disk = 0, .copied = 1, .promoted = 1}, 1},
  };
  CHECK(r.events == events);
  CHECK((r.vram == 2 && r.pool == 2 && r.disk == 2 && r.compulsory == 2));
  CHECK((r.copied == 4 && r.promoted == 2));
  CHECK((r.tokens == 3 && r.steps == 3));
}

TEST_CASE("two lanes: what the CPU computes does not come to device memory") {
  const Trace trace = trace_of(8, {{0, 1}, {0, 1}, {2, 0}, {2, 0}});
  TieredReplayOptions how{.vram_slots = 2, .pool_slots = 8, .cpu_rate = 1, .copy_rate = 1};
  const TieredReplayResult all = tiered_replay(trace, how);
  // 0 is copied, 1 computed; then 1 alone is missing and goes over PCIe, which wins ties; then 2 goes where 1
  // was.
  CHECK((all.vram == 4 && all.pool == 4 && all.copied == 3 && all.promoted == 3));
  how.cpu_rate = 10;  // PCIe gets nothing
  const TieredReplayResult cpu = tiered_replay(trace, how);
  CHECK((cpu.vram == 0 && cpu.copied == 0 && cpu.uses() == 8));
}

TEST_CASE("the hottest of an event are copied, if asked") {
  // One slot, one copy per event. In order of ids 6 is never copied; it is the only one that comes again.
  const Trace trace = trace_of(8, {{5, 6}, {0, 6}, {1, 6}});
  TieredReplayOptions how{.vram_slots = 1, .pool_slots = 8, .skip = 2, .cpu_rate = 1, .copy_rate = 1};
  CHECK(tiered_replay(trace, how).vram == 0);
  how.copies = CopyChoice::hottest;
  CHECK(tiered_replay(trace, how).vram == 1);
}

TEST_CASE("tokens of one step share their experts, and are skipped together") {
  Trace trace = trace_of(8, {{0, 1}, {1, 2}, {1, 3}});
  trace.tokens[1].step = trace.tokens[0].step;
  const TieredReplayResult all = tiered_replay(trace, {.vram_slots = 4, .pool_slots = 4});
  CHECK((all.tokens == 3 && all.steps == 2 && all.uses() == 5));
  const TieredReplayResult rest = tiered_replay(trace, {.vram_slots = 4, .pool_slots = 4, .skip = 1});
  CHECK((rest.tokens == 1 && rest.steps == 1 && rest.uses() == 2));
}

TEST_CASE("a pool that hears only of misses gives up what is in device memory") {
  // 0 and 1 are in device memory and used all the time; 2 to 5 take turns in a pool of four.
  Trace trace = trace_of(8, {{0, 1}});
  for (std::uint16_t t = 1; t < 200; ++t) {
    TraceToken token = TraceToken::sized(trace.shape);
    token.step = t;
    token.chosen = {static_cast<std::uint16_t>(t % 2), static_cast<std::uint16_t>(2 + t % 4)};
    trace.tokens.push_back(token);
  }
  TieredReplayOptions how{.vram_slots = 2, .pool_slots = 4, .skip = 20, .vram = {.second_touch_within = 2}};
  for (const PoolHears hears : {PoolHears::misses, PoolHears::exclusive}) {
    how.pool_hears = hears;
    CHECK(tiered_replay(trace, how).disk == 0);
  }
  how.pool_hears = PoolHears::all_uses;
  CHECK(tiered_replay(trace, how).disk > 50);
}
