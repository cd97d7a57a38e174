#include <catch2/catch.hpp>
#include <cstring>
#include <random>

#include "tests/unit/trace/toy_trace.h"
#include "trace/foreign.h"
#include "trace/replay.h"

using namespace stoker;

namespace {

using test::kToy;

/// Skewed, with runs: something for every policy to find.
Trace random_trace(std::uint32_t layers, std::uint32_t experts, std::uint32_t top_k, std::uint32_t tokens) {
  std::mt19937 engine(7);
  Trace trace;
  trace.shape = {.layers = layers, .experts = experts, .top_k = top_k, .candidates = 0, .expert_bytes = 1};
  std::vector<std::uint16_t> last;
  for (std::uint32_t t = 0; t < tokens; ++t) {
    TraceToken token = TraceToken::sized(trace.shape);
    token.step = t;
    for (std::uint32_t layer = 0; layer < layers; ++layer)
      for (std::uint32_t k = 0; k < top_k; ++k) {
        const std::size_t at = std::size_t{layer} * top_k + k;
        std::uint16_t expert = 0;
        const auto begin = token.chosen.begin() + std::ptrdiff_t{layer} * top_k;
        do {
          expert = !last.empty() && engine() % 2 == 0
                       ? last[at]
                       : static_cast<std::uint16_t>(std::min(engine() % experts, engine() % experts));
        } while (std::find(begin, begin + k, expert) != begin + k);
        token.chosen[at] = expert;
      }
    last = token.chosen;
    trace.tokens.push_back(token);
  }
  return trace;
}

}  // namespace

TEST_CASE("the event-atomic toy: 12 hits, 18 misses") {
  const auto trace = parse_any_trace(kToy);
  REQUIRE(trace);
  CHECK(trace->shape.layers == 3);
  CHECK(trace->tokens.size() == 5);
  const ReplayResult lru = replay(*trace, {.policy = ReplayPolicy::lru, .slots = 6, .per_layer = true});
  CHECK(lru.hits == 12);
  CHECK(lru.misses == 18);
  CHECK(lru.compulsory == 12);
  CHECK(lru.misses_per_layer == std::vector<std::uint64_t>{6, 6, 6});
}

TEST_CASE("what must hold for any policy") {
  const Trace trace = random_trace(4, 32, 3, 400);
  for (const std::uint32_t slots : {12U, 24U, 48U, 96U}) {
    const double best = replay(trace, {.policy = ReplayPolicy::belady, .slots = slots}).hit_rate();
    for (const auto policy :
         {ReplayPolicy::lru, ReplayPolicy::lfu_decay, ReplayPolicy::lfru, ReplayPolicy::stoker}) {
      const ReplayResult result = replay(trace, {.policy = policy, .slots = slots});
      CHECK(result.hits + result.misses == 400 * 4 * 3);
      CHECK(result.hit_rate() <= best);
      CHECK(result.hit_rate() > 0.1);
    }
  }
  // Room for all: only first uses miss, for everybody.
  for (const auto policy : {ReplayPolicy::lru, ReplayPolicy::stoker, ReplayPolicy::belady}) {
    const ReplayResult result = replay(trace, {.policy = policy, .slots = 128});
    CHECK(result.misses == result.compulsory);
  }
}

TEST_CASE("a cyclic sweep through a pool that is too small: LRU never hits, Belady does") {
  Trace trace = random_trace(1, 8, 1, 0);
  for (std::uint16_t t = 0; t < 80; ++t) {
    TraceToken token = TraceToken::sized(trace.shape);
    token.step = t;
    token.chosen = {static_cast<std::uint16_t>(t % 8)};
    trace.tokens.push_back(token);
  }
  CHECK(replay(trace, {.policy = ReplayPolicy::lru, .slots = 7}).hits == 0);
  // Keeps all but one: about 7 in 8 of what is left after the first round.
  CHECK(replay(trace, {.policy = ReplayPolicy::belady, .slots = 7}).hits >= 60);
}

TEST_CASE("what is skipped fills the cache and is not counted") {
  Trace trace = random_trace(1, 8, 1, 3);
  for (TraceToken& token : trace.tokens) token.chosen = {5};
  const ReplayResult result = replay(trace, {.policy = ReplayPolicy::stoker, .slots = 4, .skip = 1});
  CHECK((result.hits == 2 && result.misses == 0));
}

TEST_CASE("tokens of one step share their experts") {
  Trace trace = random_trace(1, 8, 2, 2);
  trace.tokens[0].chosen = {1, 2};
  trace.tokens[1].chosen = {2, 3};
  trace.tokens[1].step = trace.tokens[0].step;
  const ReplayResult result = replay(trace, {.policy = ReplayPolicy::lru, .slots = 8});
  CHECK(result.hits + result.misses == 3);
}

TEST_CASE("foreign traces: route_trace CSV, MTRC1, and what is neither") {
  const auto csv = parse_any_trace(
      "# route_trace v1\nturn,phase,step,layer,slot,expert,weight,residency,expert_bytes\n"
      "0,0,0,0,0,5,0.5,0,9\n0,1,7,0,0,3,0.5,0,9\n0,1,7,0,1,1,0.25,0,9\n0,1,7,1,0,0,0.5,0,9\n0,1,8,1,0,2,0.5,"
      "0,9\n");
  REQUIRE(csv);
  REQUIRE(csv->tokens.size() == 2);  // the prefill row is left out
  CHECK((csv->shape.layers == 2 && csv->shape.experts == 4 && csv->shape.top_k == 2));
  CHECK(csv->tokens[0].chosen == std::vector<std::uint16_t>{3, 1, 0, kNoExpert});
  CHECK(replay(*csv, {.policy = ReplayPolicy::lru, .slots = 8}).misses == 4);

  std::string mtrc("MTRC1\0\0\0", 8);
  for (const std::uint32_t value : {2U, 4U, 1U, 3U, 2U, 0U, 2U})
    mtrc.append(reinterpret_cast<const char*>(&value), 4);
  for (const std::uint16_t id : std::vector<std::uint16_t>{0, 1, 2, 3, 0, 1})
    mtrc.append(reinterpret_cast<const char*>(&id), 2);
  const auto binary = parse_any_trace(mtrc);
  REQUIRE(binary);
  REQUIRE(binary->tokens.size() == 3);
  CHECK(binary->tokens[1].chosen == std::vector<std::uint16_t>{2, 3});
  CHECK(binary->tokens[0].sequence == binary->tokens[1].sequence);
  CHECK(binary->tokens[1].sequence != binary->tokens[2].sequence);
  CHECK_FALSE(parse_any_trace(mtrc.substr(0, mtrc.size() - 1)));

  // Columns of both kinds; found by fuzzing.
  CHECK(parse_any_trace("requested_experts,scheduler_step,layer,phase\n0,1,2,x\n"));
  // One expert in a far layer in each of many steps would be gigabytes of absent ones.
  std::string sparse = "step,layer,phase,expert\n";
  for (int step = 0; step < 2000; ++step) sparse += std::to_string(step) + ",4095,1,0\n";
  for (int i = 0; i < 250; ++i) sparse += "0,0,1," + std::to_string(i) + "\n";
  const auto refused_sparse = parse_any_trace(sparse);
  REQUIRE_FALSE(refused_sparse);
  CHECK(refused_sparse.error().message.find("more than fit in memory") != std::string::npos);
  for (const char* bad :
       {"", "hello\n", "step,layer,phase,expert\n1,2\n", "step,layer,phase,expert\n1,x,1,1\n"}) {
    const auto refused = parse_any_trace(bad);
    REQUIRE_FALSE(refused);
    CHECK(refused.error().code == Errc::corrupt);
  }
}
